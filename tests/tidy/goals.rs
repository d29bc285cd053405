//! Every goal is shown by something that exists.

use std::collections::BTreeSet;

use crate::rules::File;

/// How many goals there are.
const GOALS: usize = 20;

/// A row of the list is `| G7 | what must hold | where it is shown |`; what is shown by tests is
/// found by their names, which begin with `g7_`, and what is measured is named `` bench `calls` ``.
pub(crate) fn goals_are_shown(list: &str, files: &[File]) -> Vec<String> {
    let tests = tests(files);
    let benches = benches(files);
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for line in list.lines().filter(|line| line.starts_with("| G")) {
        let mut cells = line.split('|').map(str::trim).skip(1);
        let goal = cells.next().unwrap_or_default();
        let shown = cells.nth(1).unwrap_or_default();
        let Some(number) = goal.strip_prefix('G').and_then(|n| n.parse().ok()) else {
            findings.push(format!("goal {goal:?}: G and a number"));
            continue;
        };
        listed.insert(number);
        let prefix = format!("g{number}_");
        let named = |name: &str| tests.iter().any(|test| test == name);
        let quoted = shown.split('`').skip(1).step_by(2);
        for name in quoted.clone().filter(|name| name.starts_with(&prefix)) {
            if !named(name) {
                findings.push(format!("{goal}: there is no test {name}"));
            }
        }
        let mut rest = shown;
        while let Some((_, after)) = rest.split_once("bench `") {
            let (bench, after) = after.split_once('`').unwrap_or((after, ""));
            if !benches.contains(bench) {
                findings.push(format!("{goal}: there is no bench {bench}"));
            }
            rest = after;
        }
        let mut own = tests.iter().filter(|test| test.starts_with(&prefix));
        if !shown.contains("bench `") && own.clone().next().is_none() {
            findings.push(format!("{goal}: no test is named after it"));
        }
        if let Some(test) = own.find(|test| !quoted.clone().any(|name| name == **test)) {
            findings.push(format!("{goal}: the list does not name {test}"));
        }
    }
    let all: BTreeSet<usize> = (1..=GOALS).collect();
    findings.extend(all.difference(&listed).map(|n| format!("G{n}: not listed")));
    findings
}

/// The names of all functions that are named after a goal.
fn tests(files: &[File]) -> BTreeSet<String> {
    let lines = files.iter().flat_map(|file| file.text.lines());
    lines
        .filter_map(|line| line.split_once("fn g")?.1.split_once('('))
        .map(|(name, _)| format!("g{name}"))
        .filter(|name| {
            let digits = name.trim_start_matches('g').split('_').next();
            digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
        })
        .collect()
}

/// The names of all benches of the program that measures balancing.
fn benches(files: &[File]) -> BTreeSet<String> {
    let own = files
        .iter()
        .filter(|file| file.path.starts_with("benches/src/balancing/"));
    let quoted = own.flat_map(|file| file.text.split('"').skip(1).step_by(2));
    quoted.map(str::to_owned).collect()
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

    #[test]
    fn what_is_missing_is_found() {
        let files = [
            file(
                "sdk-tower/tests/a.rs",
                "async fn g1_holds() {}\nfn g2_more() {}",
            ),
            file("benches/src/balancing/mod.rs", "\"calls\""),
        ];
        let list = "\
            | G1 | holds | `g1_holds`, `g1_gone` |\n\
            | G2 | more | measured by bench `calls` |\n\
            | G3 | less | bench `none` |\n\
            | G4 | nothing | by hand |\n";
        let findings = goals_are_shown(list, &files);
        let has = |what: &str| findings.iter().any(|finding| finding == what);
        assert!(has("G1: there is no test g1_gone"), "{findings:?}");
        assert!(has("G2: the list does not name g2_more"), "{findings:?}");
        assert!(has("G3: there is no bench none"), "{findings:?}");
        assert!(has("G4: no test is named after it"), "{findings:?}");
        assert!(has("G20: not listed"), "{findings:?}");
        assert!(!findings.iter().any(|finding| finding.contains("g1_holds")));
    }
}
