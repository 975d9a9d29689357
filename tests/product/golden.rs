//! Golden texts of failures, `tests/golden/failures`.

use std::fs;

use product_tests::{Project, root};

/// Says how a text differs from its golden file.
pub fn differs(name: &str, text: &str) -> Option<String> {
    let path = root()
        .join("tests/golden/failures")
        .join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, text).expect("a golden file");
        return None;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    (expected != text).then(|| format!("{name}: expected\n{expected}\ngot\n{text}"))
}

/// The error reports alone, without what differs from run to run.
pub fn normal(stderr: &str, project: &Project) -> String {
    let from = stderr.find("error[").unwrap_or(0);
    let text = stderr[from..].replace(&project.path("").display().to_string(), "PROJECT/");
    let mut out = String::new();
    for line in text.lines() {
        // paths inside the store name the run and the attempt
        let line: Vec<String> = line
            .split(' ')
            .map(|word| match word.find("/.recipe/") {
                Some(at) => {
                    let file = word.rsplit('/').next().unwrap_or(word);
                    format!("{}/.recipe/../{file}", &word[..at])
                }
                None => word.to_owned(),
            })
            .collect();
        out.push_str(line.join(" ").trim_end());
        out.push('\n');
    }
    out
}
