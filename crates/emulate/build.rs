//! Compiles the kernels' CUDA C++ as C++ of the host.

fn main() {
    let kernels = "../../kernels/cuda";
    println!("cargo:rerun-if-changed=cxx");
    println!("cargo:rerun-if-changed={kernels}");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .flag("-Wno-attributes")
        .flag("-Wno-unknown-pragmas")
        // no fused multiply-adds, and types are punned as CUDA lets them
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .opt_level(2)
        .include("cxx")
        .include(kernels)
        .file("cxx/emulate.cpp")
        .compile("recipe_emulate");
}
