//! The rules. Each takes text and gives findings, so that a test can feed it something bad.

use std::collections::HashMap;

use crate::source::{code, lines_with_word, named, without_tests};

/// A file of the repository.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// Its path from the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    /// Its path within the sources of a crate such as `sdk`, if it is one of them.
    pub(crate) fn within(&self, krate: &str) -> Option<&str> {
        self.path.strip_prefix(krate)?.strip_prefix("/src/")
    }

    /// A file that is nothing but tests of its neighbour.
    pub(crate) fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }

    /// Its code without comments, strings and tests.
    pub(crate) fn production(&self) -> String {
        without_tests(&code(&self.text))
    }

    fn at(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path)
    }
}

/// The modules of a crate in the order of its `mod` lines, and what its root re-exports.
struct Root {
    modules: Vec<String>,
    /// A re-exported name and the module it comes from.
    exported: HashMap<String, String>,
}

impl Root {
    fn of(lib: &str) -> Self {
        let lib = without_tests(&code(lib));
        let modules = lib.lines().filter_map(|line| {
            let line = line
                .trim_start()
                .strip_prefix("pub ")
                .unwrap_or(line.trim_start());
            line.strip_prefix("mod ")?
                .strip_suffix(';')
                .map(str::to_owned)
        });
        let mut exported = HashMap::new();
        for line in lib.split(';') {
            if let Some(tree) = line.trim_start().strip_prefix("pub use ") {
                let tree = format!("crate::{}", tree.trim_start_matches("crate::"));
                for mut named in named(&tree, 0) {
                    if let (Some(last), Some(first)) = (named.path.pop(), named.path.first()) {
                        exported.insert(last, first.clone());
                    }
                }
            }
        }
        Self {
            modules: modules.collect(),
            exported,
        }
    }

    fn rank(&self, module: &str) -> Option<usize> {
        self.modules.iter().position(|name| name == module)
    }

    /// A path with a re-exported head traced to its module.
    fn trace(&self, mut path: Vec<String>) -> Vec<String> {
        let module = path.first().and_then(|head| self.exported.get(head));
        if let Some(module) = module.cloned() {
            path.insert(0, module);
        }
        path
    }
}

/// The top module a source file belongs to, and how many modules deep it stands.
fn place(within: &str) -> Option<(&str, usize)> {
    let path = within.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    let top = path.split('/').next()?;
    (top != "lib").then(|| (top, path.split('/').count()))
}

/// A module names only modules declared above it in `lib.rs`.
pub(crate) fn layering(krate: &str, files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lib = files
        .iter()
        .find(|file| file.within(krate) == Some("lib.rs"));
    let Some(lib) = lib else {
        return vec![format!("{krate}/src/lib.rs: not found")];
    };
    let root = Root::of(&lib.text);
    for file in files.iter().filter(|file| !file.is_tests()) {
        let Some((top, depth)) = file.within(krate).and_then(place) else {
            continue;
        };
        let Some(own) = root.rank(top) else {
            wrong.push(file.at(1, "no `mod` line in lib.rs leads here"));
            continue;
        };
        for named in named(&file.production(), depth) {
            let path = root.trace(named.path);
            let Some(head) = path.first() else { continue };
            if root.rank(head).is_some_and(|rank| rank > own) {
                wrong.push(file.at(
                    named.line,
                    &format!("{top} names {head}, which is below it"),
                ));
            }
        }
    }
    wrong
}

/// The embedded agent names nothing of the crate but words, durations and tasks, so that no
/// mistake of the client can hide in it.
pub(crate) fn the_embedded_agent_stands_alone(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    let lib = files
        .iter()
        .find(|file| file.within("sdk") == Some("lib.rs"));
    let root = Root::of(lib.map_or("", |lib| &lib.text));
    for file in files.iter().filter(|file| !file.is_tests()) {
        let Some(("embedded", depth)) = file.within("sdk").and_then(place) else {
            continue;
        };
        for named in named(&file.production(), depth) {
            let path = root.trace(named.path);
            let words: Vec<&str> = path.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["error" | "ident" | "task" | "embedded", ..] | ["proto", "duration", ..] => {}
                _ => wrong.push(file.at(named.line, &format!("names {}", path.join("::")))),
            }
        }
    }
    wrong
}

/// No file has more lines of code than a reader can take at a sitting.
pub(crate) fn no_file_is_too_long(files: &[File]) -> Vec<String> {
    const WALL: usize = 600;
    let mut wrong = Vec::new();
    for file in files {
        let ours = file.within("sdk").or(file.within("sdk-tower")).is_some();
        if !ours || file.is_tests() || !file.path.ends_with(".rs") {
            continue;
        }
        // Blanked tests leave their lines behind; they are not counted.
        let all = code(&file.text);
        let kept = without_tests(&all);
        let emptied = all.lines().zip(kept.lines());
        let tests = emptied.filter(|(was, is)| was.trim() != is.trim()).count();
        let lines = file.text.lines().count() - tests;
        if lines > WALL {
            wrong.push(format!(
                "{}: {lines} lines of code, {WALL} is the wall",
                file.path
            ));
        }
    }
    wrong
}

/// A foreign crate is named in one place only, so that it can be replaced there.
///
/// Each of `homes` is a file, or a folder with `/` at its end.
pub(crate) fn one_home(krate: &str, word: &str, homes: &[&str], files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        let Some(within) = file.within(krate) else {
            continue;
        };
        let at_home =
            |home: &&str| within == *home || (home.ends_with('/') && within.starts_with(home));
        if homes.iter().any(at_home) {
            continue;
        }
        for line in lines_with_word(&file.production(), word) {
            wrong.push(file.at(
                line,
                &format!("names {word}, which belongs in {}", homes.join(", ")),
            ));
        }
    }
    wrong
}

/// Tasks start in `task.rs`, where each gets an owner, or in a set that ends them when it goes.
///
/// A method call does not tell the type of what it is called on. So `name.spawn(…)` is taken for a
/// set's if the file says on some line that `name` is one: tokio's `JoinSet`, the crate's `Group`.
pub(crate) fn tasks_have_owners(files: &[File]) -> Vec<String> {
    const STARTS: [&str; 5] = [
        "tokio::spawn",
        "task::spawn",
        "thread::spawn",
        "spawn_blocking",
        "spawn_local",
    ];
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        let within = file.within("sdk").or(file.within("sdk-tower"));
        if within.is_none_or(|within| within == "task.rs") {
            continue;
        }
        let code = file.production();
        for (at, line) in code.lines().enumerate() {
            for start in STARTS.iter().filter(|start| line.contains(**start)) {
                wrong.push(file.at(at + 1, &format!("`{start}` outside task.rs")));
            }
        }
        let lines: Vec<&str> = code.lines().collect();
        let of_a_set = |name: &str| {
            let told = lines_with_word(&code, name);
            let mut told = told.iter().filter_map(|line| lines.get(line - 1));
            !name.is_empty() && told.any(|line| line.contains("JoinSet") || line.contains("Group"))
        };
        for (at, _) in code.match_indices(".spawn(") {
            let before = code[..at].trim_end();
            let word = before.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
            let name = &before[word.len()..];
            if !of_a_set(name) {
                let line = code[..at].matches('\n').count() + 1;
                wrong.push(file.at(line, &format!("`{name}.spawn(` outside task.rs")));
            }
        }
    }
    wrong
}

/// Nothing is postponed, switched off, or true on one machine only.
pub(crate) fn nothing_is_left_lying(files: &[File]) -> Vec<String> {
    // In pieces, so that this file does not find itself.
    let postponed = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
    ];
    let machine = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("/Us", "ers/"),
        concat!("C:", "\\\\"),
    ];
    let mut wrong = Vec::new();
    for file in files {
        for word in postponed {
            for line in lines_with_word(&file.text, word) {
                wrong.push(file.at(line, &format!("`{word}`: do it, or drop it")));
            }
        }
        for (at, line) in file.text.lines().enumerate() {
            for path in machine.iter().filter(|path| line.contains(**path)) {
                wrong.push(file.at(at + 1, &format!("`{path}`: a path of one machine")));
            }
            let fence = line.trim_start().trim_start_matches(['/', '!', '*', ' ']);
            if fence.starts_with("```") && fence.contains("ignore") {
                wrong.push(file.at(at + 1, "an example that nobody compiles"));
            }
        }
        if file.path.ends_with(".rs") {
            for (at, line) in code(&file.text).lines().enumerate() {
                if line.replace(' ', "").contains("#[ignore") {
                    wrong.push(file.at(at + 1, "a test that nobody runs"));
                }
            }
        }
    }
    wrong
}

/// What the README says about versions is what the manifest says.
pub(crate) fn readme_versions(readme: &str, manifest: &str) -> Vec<String> {
    let version = value(manifest, "version");
    let rust = value(manifest, "rust-version");
    let mut wrong = Vec::new();
    for (at, line) in readme.lines().enumerate() {
        let mut expect = |what: &str, said: Option<String>, is: &str| {
            let same = |said: &String| is == said || is.starts_with(&format!("{said}."));
            if said.as_ref().is_some_and(|said| !same(said)) {
                let said = said.unwrap_or_default();
                wrong.push(format!("README.md:{}: {what} is {is}, not {said}", at + 1));
            }
        };
        let line = line.trim();
        for krate in ["lictor", "lictor-tower"] {
            let dependency = line.strip_prefix(krate).map(str::trim_start);
            if let Some(dependency) = dependency.and_then(|rest| rest.strip_prefix('=')) {
                expect("the version", number_in(dependency), &version);
            }
        }
        for mark in ["MSRV", "Rust 1", "rustc"] {
            for (found, _) in line.match_indices(mark) {
                // The `1` of `Rust 1` belongs to the number.
                let after = &line[found + mark.trim_end_matches('1').len()..];
                expect("rust-version", number_in(after), &rust);
            }
        }
    }
    wrong
}

/// The first number with a dot in it.
fn number_in(text: &str) -> Option<String> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.')
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.'))
        .map(str::to_owned)
}

/// The value of the first `key = "value"` of a manifest.
pub(crate) fn value(manifest: &str, key: &str) -> String {
    let values = manifest.lines().filter_map(|line| {
        let value = line
            .trim()
            .strip_prefix(key)?
            .trim_start()
            .strip_prefix('=')?;
        Some(value.trim().trim_matches('"').to_owned())
    });
    values.into_iter().next().unwrap_or_default()
}

/// Every example is a file, is declared, and is in the table for newcomers.
///
/// What `lib` declares as a module is no example but what they share.
pub(crate) fn examples_are_told(
    manifest: &str,
    lib: &str,
    readme: &str,
    files: &[String],
) -> Vec<String> {
    let shared = Root::of(lib).modules;
    let mut wrong = Vec::new();
    let mut declared = Vec::new();
    for table in manifest.split("[[example]]").skip(1) {
        let table = table.split("\n[").next().unwrap_or_default();
        declared.push((value(table, "name"), value(table, "path")));
    }
    for file in files {
        let module = file.trim_end_matches(".rs");
        if module == "lib" || shared.iter().any(|name| name == module) {
            continue;
        }
        if !declared.iter().any(|(_, path)| path == file) {
            wrong.push(format!("examples/{file}: not in examples/Cargo.toml"));
        }
    }
    for (name, path) in &declared {
        if !files.contains(path) {
            wrong.push(format!("examples/Cargo.toml: {name} has no file `{path}`"));
        }
        if lines_with_word(readme, name).is_empty() {
            wrong.push(format!("examples/README.md: does not tell of {name}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "pub mod error;\nmod proto;\nmod task;\n#[cfg(feature = \"e\")]\n\
                       pub mod embedded;\npub mod client;\npub mod watch;\n\
                       pub use error::{Error, Result};\npub use watch::Watch;\n";

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn sdk(path: &str, text: &str) -> Vec<File> {
        vec![
            file("sdk/src/lib.rs", LIB),
            file(&format!("sdk/src/{path}"), text),
        ]
    }

    fn breaks_layering(path: &str, text: &str) -> bool {
        !layering("sdk", &sdk(path, text)).is_empty()
    }

    #[test]
    fn naming_a_module_below_is_found_in_every_spelling() {
        assert!(breaks_layering(
            "client/mod.rs",
            "use crate::watch::Engine;"
        ));
        assert!(breaks_layering(
            "client/mod.rs",
            "use crate::{error, watch::{Engine}};"
        ));
        assert!(breaks_layering(
            "client/mod.rs",
            "pub(crate) use crate::watch;"
        ));
        assert!(breaks_layering(
            "client/mod.rs",
            "fn f() { crate::watch::start() }"
        ));
        assert!(breaks_layering("client/mod.rs", "use super::watch;"));
        assert!(breaks_layering(
            "client/deep.rs",
            "use super::super::watch;"
        ));
        assert!(breaks_layering("client.rs", "use crate::Watch;"));
        assert!(breaks_layering(
            "proto/mod.rs",
            "use crate::{\n    error,\n    task,\n};"
        ));
    }

    #[test]
    fn naming_a_module_above_or_talking_about_one_below_is_fine() {
        assert!(!breaks_layering(
            "watch/mod.rs",
            "use crate::{client, error, Error};"
        ));
        assert!(!breaks_layering(
            "client/mod.rs",
            "// see crate::watch\nlet s = \"crate::watch\";"
        ));
        assert!(!breaks_layering(
            "client/mod.rs",
            "#[cfg(test)]\nmod tests { use crate::watch; }"
        ));
        assert!(!breaks_layering("client/tests.rs", "use crate::watch;"));
        assert!(!breaks_layering("client/deep.rs", "use super::watch;"));
    }

    #[test]
    fn a_file_that_no_module_line_leads_to_is_found() {
        assert!(breaks_layering("forgotten.rs", ""));
    }

    #[test]
    fn an_embedded_agent_that_knows_the_client_is_found() {
        let found = |text| the_embedded_agent_stands_alone(&sdk("embedded/state.rs", text)).len();
        assert_eq!(found("use crate::client::Client;"), 1);
        assert_eq!(found("use crate::proto::index;"), 1);
        assert_eq!(found("use crate::proto::{duration, query};"), 1);
        assert_eq!(found("use crate::Watch;"), 1);
        assert_eq!(found("use super::super::client;"), 1);
        assert_eq!(
            found("use crate::proto::duration::parse;\nuse crate::{Error, Result, task};"),
            0
        );
        assert_eq!(found("use super::catalog::Node;"), 0);
    }

    #[test]
    fn a_file_over_the_wall_is_found_and_its_tests_do_not_count() {
        let long = "fn f() {}\n".repeat(601);
        assert_eq!(no_file_is_too_long(&sdk("client.rs", &long)).len(), 1);
        let tested = format!(
            "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
            "fn f() {}\n".repeat(600),
            "    fn t() {}\n".repeat(300)
        );
        assert!(no_file_is_too_long(&sdk("client.rs", &tested)).is_empty());
        let early = format!("#[cfg(test)]\nmod tests;\n{long}");
        assert_eq!(no_file_is_too_long(&sdk("client.rs", &early)).len(), 1);
    }

    #[test]
    fn a_foreign_crate_away_from_home_is_found() {
        let homes = ["transport/http.rs", "transport/http/"];
        let found = |path, text| one_home("sdk", "reqwest", &homes, &sdk(path, text)).len();
        assert_eq!(found("client.rs", "use reqwest::Url;"), 1);
        assert_eq!(found("client.rs", "// reqwest does it"), 0);
        assert_eq!(found("transport/http.rs", "use reqwest::Url;"), 0);
        assert_eq!(found("transport/http/tls.rs", "use reqwest::Url;"), 0);
        assert_eq!(found("transport/https.rs", "use reqwest::Url;"), 1);
    }

    #[test]
    fn a_task_without_an_owner_is_found() {
        let found = |path, text| tasks_have_owners(&sdk(path, text)).len();
        assert_eq!(found("client.rs", "tokio::spawn(async {});"), 1);
        assert_eq!(found("client.rs", "handle.spawn(async {});"), 1);
        assert_eq!(found("client.rs", "std::thread::spawn(|| {});"), 1);
        assert_eq!(
            found("client.rs", "Worker::spawn(&handle, |stop| async {});"),
            0
        );
        assert_eq!(found("task.rs", "runtime.spawn(body);"), 0);
        let set = "let mut set = JoinSet::new();\nset.spawn(async {});";
        assert_eq!(found("client.rs", set), 0);
        let field = "struct S {\n    tries: Option<Group>,\n}\nself.tries\n    .spawn(async {});";
        assert_eq!(found("client.rs", field), 0);
        let other =
            "let set = JoinSet::new();\nlet runtime = Handle::current();\nruntime.spawn(body);";
        assert_eq!(found("client.rs", other), 1);
        assert_eq!(found("client.rs", "Handle::current().spawn(body);"), 1);
    }

    #[test]
    fn postponed_work_switched_off_tests_and_machine_paths_are_found() {
        let found = |text: &str| nothing_is_left_lying(&[file("sdk/src/a.rs", text)]).len();
        assert_eq!(found(concat!("// TO", "DO: later")), 1);
        assert_eq!(found(concat!("// FIX", "ME")), 1);
        assert_eq!(found(concat!("//! ``", "`rust,ignore")), 1);
        assert_eq!(found(concat!("``", "`ignore")), 1);
        assert_eq!(found(concat!("#[ign", "ore = \"slow\"]")), 1);
        assert_eq!(found(concat!("let p = \"/ho", "me/me/x\";")), 1);
        assert_eq!(found("//! ```no_run\n// what to ignore\nlet todos = 1;"), 0);
    }

    #[test]
    fn a_readme_that_disagrees_with_the_manifest_is_found() {
        let manifest = "version = \"0.1.0\"\nrust-version = \"1.88\"\n";
        let found = |readme| readme_versions(readme, manifest).len();
        assert_eq!(found("lictor = \"0.2\""), 1);
        assert_eq!(found("lictor-tower = { version = \"0.1.1\" }"), 1);
        assert_eq!(
            found("lictor = \"0.1\"\nlictor-tower = { version = \"0.1.0\" }"),
            0
        );
        assert_eq!(found("MSRV: 1.85"), 1);
        assert_eq!(found("needs Rust 1.8 and Consul 1.8"), 1);
        assert_eq!(
            found("needs Rust 1.88, works with Consul 1.8 to 1.21 in Rust"),
            0
        );
        assert_eq!(found("| MSRV | 1.88 |"), 0);
    }

    #[test]
    fn an_example_that_nobody_is_told_of_is_found() {
        let manifest = "[[example]]\nname = \"quickstart\"\npath = \"quickstart.rs\"\n\n[lints]\n";
        let files = ["lib.rs", "load.rs", "quickstart.rs"].map(str::to_owned);
        let lib = "pub mod load;\n";
        let told = "`quickstart` shows";
        assert!(examples_are_told(manifest, lib, told, &files).is_empty());
        assert_eq!(examples_are_told(manifest, lib, "nothing", &files).len(), 1);
        assert_eq!(examples_are_told(manifest, "", told, &files).len(), 1);
        assert_eq!(examples_are_told("", lib, told, &files).len(), 1);
        assert_eq!(examples_are_told(manifest, lib, told, &files[..2]).len(), 1);
    }
}
