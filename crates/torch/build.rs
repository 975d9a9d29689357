//! Compiles the C++ bridge against the libtorch that `LIBTORCH` names (xtask sets it).

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=cxx");
    let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from) else {
        println!(
            "cargo:error=LIBTORCH is not set: build through `cargo xtask build`, which fetches libtorch and sets it"
        );
        return;
    };
    let include = libtorch.join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .pic(true)
        .opt_level(2)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .define("USE_C10D_GLOO", None)
        .include("cxx")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // at::parallel_for is a template over OpenMP: our loops share libtorch's threads
        .flag("-fopenmp")
        .files([
            "cxx/attention.cpp",
            "cxx/autograd.cpp",
            "cxx/dist.cpp",
            "cxx/memory.cpp",
            "cxx/observe.cpp",
            "cxx/ops.cpp",
            "cxx/stream.cpp",
        ])
        .compile("recipe_torch_bridge");
    println!(
        "cargo:rustc-link-search=native={}",
        libtorch.join("lib").display()
    );
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
    println!("cargo:rustc-link-lib=gomp");
    println!("cargo:rustc-link-lib=stdc++");
}
