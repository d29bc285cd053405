//! Which futures the crate gives out, and whether the suite of drops knows all of them.

use std::collections::BTreeSet;

use crate::rules::File;

/// Every public future of the crate has a case in `tests/drops/`, which begins with its name.
pub(crate) fn every_future_is_dropped(files: &[File]) -> Vec<String> {
    let suite = files.iter().filter(|file| is_of_the_suite(file));
    let suite: String = suite.map(|file| file.text.as_str()).collect();
    let has_case = |name: &str| {
        [format!("\"{name}\""), format!("\"{name}: ")]
            .iter()
            .any(|case| suite.contains(case))
    };
    let mut missing = Vec::new();
    for file in files.iter().filter(|file| !file.is_tests()) {
        if file.within("sdk").is_none() {
            continue;
        }
        for name in futures(&file.production()) {
            if !has_case(&name) {
                missing.push(format!("{}: {name} has no case in tests/drops/", file.path));
            }
        }
    }
    missing
}

fn is_of_the_suite(file: &File) -> bool {
    file.path.starts_with("tests/drops/")
}

/// The public futures of a file, each as type and function.
fn futures(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("\nimpl") {
        let item = &code[at + 1..];
        let Some(open) = item.find('{') else {
            continue;
        };
        let header = Header::of(&item[..open]);
        let body = item.find("\n}").map_or(item, |end| &item[..end]);
        match header.of_trait.as_str() {
            "IntoFuture" => drop(found.insert(format!("{}::into_future", header.on))),
            "Future" => drop(found.insert(format!("{}::poll", header.on))),
            "Stream" => drop(found.insert(format!("{}::poll_next", header.on))),
            _ => {}
        }
        for (at, _) in body.match_indices("pub ") {
            let declared = &body[at + "pub ".len()..];
            let declared = declared.find('{').map_or(declared, |end| &declared[..end]);
            let (is_async, rest) = match declared.strip_prefix("async fn ") {
                Some(rest) => (true, rest),
                None => (false, declared.strip_prefix("fn ").unwrap_or_default()),
            };
            let name: String = rest.chars().take_while(|c| is_word(*c)).collect();
            if !name.is_empty() && (is_async || rest.contains("-> impl Future")) {
                found.insert(format!("{}::{name}", header.on));
            }
        }
    }
    found
}

struct Header {
    of_trait: String,
    on: String,
}

impl Header {
    /// Reads what stands between `impl` and the brace.
    fn of(text: &str) -> Self {
        let text = text.split(" where").next().unwrap_or_default();
        let text = without_angles(text.trim_start_matches("impl"));
        let (of_trait, on) = match text.split_once(" for ") {
            Some((of_trait, on)) => (of_trait.to_owned(), on.to_owned()),
            None => (String::new(), text),
        };
        let last = |path: &str| {
            let word = path.trim().rsplit("::").next().unwrap_or_default();
            word.chars().take_while(|c| is_word(*c)).collect()
        };
        Self {
            of_trait: last(&of_trait),
            on: last(&on),
        }
    }
}

/// The text without what stands in angle brackets.
fn without_angles(text: &str) -> String {
    let mut depth = 0_usize;
    let mut kept = String::new();
    let mut before = ' ';
    for c in text.chars() {
        match c {
            '<' => depth += 1,
            // Not that of an arrow.
            '>' if before != '-' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(c),
            _ => {}
        }
        before = c;
    }
    kept
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    const LOCK: &str = "
impl Lock {
    pub async fn acquire(&self) -> u8 { 1 }
    pub fn key(&self) -> u8 { 1 }
    pub(super) async fn inner(&self) {}
    async fn own(&self) {}
}

impl<T: Fn() -> u8> Election<T> {
    pub fn run<S, F>(
        &self,
    ) -> impl Future<Output = u8> + use<S, F>
    where
        S: Send,
    {
    }
}

impl<'a, T> std::future::IntoFuture for FencedTxn<'a, T> {
}

#[cfg(test)]
mod tests {
impl Stub {
    pub async fn stubbed(&self) {}
}
}
";

    #[test]
    fn futures_are_found_by_type_and_name() {
        let found = futures(&file("sdk/src/lock.rs", LOCK).production());
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(
            found,
            ["Election::run", "FencedTxn::into_future", "Lock::acquire"]
        );
    }

    #[test]
    fn a_future_without_a_case_is_found() {
        let lock = file("sdk/src/lock.rs", LOCK);
        let suite = |cases: &str| file("tests/drops/locks.rs", cases);
        let some = suite("\"Lock::acquire: others hold it\" => a,\n\"Election::run\" => b,\n");
        let missing = every_future_is_dropped(&[lock.clone(), some]);
        assert_eq!(
            missing,
            ["sdk/src/lock.rs: FencedTxn::into_future has no case in tests/drops/"]
        );
        let mistaken = suite("\"Lock::acquired\" => a,\n");
        assert_eq!(every_future_is_dropped(&[lock, mistaken]).len(), 3);
    }
}
