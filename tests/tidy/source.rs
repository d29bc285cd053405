//! Enough of Rust's grammar to tell code from comments, strings and tests, and to read paths.

/// The text with the insides of comments, strings and characters blanked; lines stay lines.
pub(crate) fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    while at < chars.len() {
        let end = match (peek(at), peek(at + 1)) {
            ('/', '/') => find(&chars, at, |at| peek(at) == '\n'),
            ('/', '*') => block_comment(&chars, at),
            ('"', _) => string(&chars, at + 1),
            ('\'', '\\') => find(&chars, at + 3, |at| peek(at) == '\'') + 1,
            ('\'', _) if peek(at + 2) == '\'' => at + 3,
            ('r', '"' | '#') if !is_word(at.checked_sub(1).map_or(' ', peek)) => {
                raw_string(&chars, at)
            }
            // `br"…"` and `cr"…"`.
            ('b' | 'c', 'r') if !is_word(at.checked_sub(1).map_or(' ', peek)) => {
                match raw_string(&chars, at + 1) {
                    end if end == at + 1 => at,
                    end => end,
                }
            }
            _ => at,
        };
        if end <= at {
            out.push(peek(at));
            at += 1;
        } else {
            let end = end.min(chars.len());
            out.extend((at..end).map(|at| if peek(at) == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

fn find(chars: &[char], from: usize, stop: impl Fn(usize) -> bool) -> usize {
    (from..chars.len())
        .find(|&at| stop(at))
        .unwrap_or(chars.len())
}

fn block_comment(chars: &[char], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < chars.len() {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn string(chars: &[char], from: usize) -> usize {
    let mut at = from;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// The end of a raw string whose `r` stands at `from`; `from` itself if there is none.
fn raw_string(chars: &[char], from: usize) -> usize {
    let quote = find(chars, from + 1, |at| chars[at] != '#');
    if chars.get(quote) != Some(&'"') {
        return from;
    }
    let hashes = quote - from - 1;
    let closes =
        |at: usize| chars[at] == '"' && (1..=hashes).all(|more| chars.get(at + more) == Some(&'#'));
    find(chars, quote + 1, closes) + 1 + hashes
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Code with every item under `#[cfg(test)]` blanked. The argument comes from [`code`].
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut rest = code;
    let mut out = String::with_capacity(code.len());
    while let Some(at) = rest.find(MARK) {
        let (before, item) = rest.split_at(at);
        let end = MARK.len() + item_end(&item[MARK.len()..]);
        out.push_str(before);
        out.extend(item[..end].chars().filter(|&c| c == '\n'));
        rest = &item[end..];
    }
    out.push_str(rest);
    out
}

/// Where the item ends: after its `;`, or after its braces and a `;` that follows them.
fn item_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth = depth.saturating_sub(1);
                if c == '}' && depth == 0 {
                    let tail = &item[at + 1..];
                    let gap = tail.len() - tail.trim_start().len();
                    let semicolon = usize::from(tail.trim_start().starts_with(';'));
                    return at + 1 + if semicolon == 1 { gap + 1 } else { 0 };
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    item.len()
}

/// A path that leads to the crate's root, without its `crate` or `super`s.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Named {
    pub(crate) line: usize,
    pub(crate) path: Vec<String>,
}

/// Every path in a file that begins at the crate's root, by `crate::` or by enough `super::`.
///
/// `depth` is how many modules deep the file stands: 1 for `client.rs` and `client/mod.rs`.
pub(crate) fn named(code: &str, depth: usize) -> Vec<Named> {
    let mut found = Vec::new();
    let inline = inline_modules(code);
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(is_word) {
            continue;
        }
        let line = line_of(code, at);
        for path in tree(&code[at + "crate::".len()..]).0 {
            found.push(Named { line, path });
        }
    }
    let mut past = 0;
    for (at, _) in code.match_indices("super::") {
        if at < past || code[..at].ends_with(is_word) {
            continue;
        }
        let mut supers = 0;
        let mut rest = &code[at..];
        while let Some(after) = rest.strip_prefix("super::") {
            supers += 1;
            rest = after;
        }
        past = code.len() - rest.len();
        let around = inline.iter().filter(|module| module.contains(&at)).count();
        if supers == depth + around {
            let line = line_of(code, at);
            found.extend(tree(rest).0.into_iter().map(|path| Named { line, path }));
        }
    }
    found.retain(|named| !named.path.is_empty());
    found.sort_by_key(|named| named.line);
    found
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The bodies of `mod name { … }`.
fn inline_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("mod ") {
        let rest = &code[at + 4..];
        let name = rest.trim_start().trim_start_matches(is_word);
        if !code[..at].ends_with(is_word) && name.trim_start().starts_with('{') {
            let open = code.len() - name.trim_start().len();
            found.push(open..open + item_end(&code[open..]));
        }
    }
    found
}

/// Reads a use tree or a plain path; gives every full path in it and what follows.
fn tree(text: &str) -> (Vec<Vec<String>>, &str) {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut found = Vec::new();
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(after) = rest.strip_prefix('}') {
                return (found, after);
            }
            let before = rest.len();
            let (paths, after) = tree(rest);
            found.extend(paths);
            // What `as` renames to, and anything this grammar does not know.
            rest = after.trim_start_matches(|c: char| c != ',' && c != '}');
            if rest.is_empty() || rest.len() == before {
                return (found, rest);
            }
        }
    }
    let word = text.len() - text.trim_start_matches(is_word).len();
    let (head, rest) = text.split_at(word);
    if head.is_empty() {
        return (vec![Vec::new()], rest);
    }
    let Some(below) = rest.strip_prefix("::") else {
        return (vec![vec![head.to_owned()]], rest);
    };
    let (paths, rest) = tree(below);
    let paths = paths.into_iter().map(|path| {
        let own = path.first().is_none_or(|first| first != "self");
        let path = if own { path } else { Vec::new() };
        std::iter::once(head.to_owned()).chain(path).collect()
    });
    (paths.collect(), rest)
}

/// Every word of `code` that equals `word`, as line numbers.
pub(crate) fn lines_with_word(code: &str, word: &str) -> Vec<usize> {
    code.match_indices(word)
        .filter(|(at, _)| {
            !code[..*at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word)
        })
        .map(|(at, _)| line_of(code, at))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(code: &str, depth: usize) -> Vec<String> {
        let named = named(code, depth).into_iter();
        named.map(|named| named.path.join("::")).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_blanked_and_lines_are_kept() {
        let text = "a // b\n/* c /* d */ e */ f \"g \\\" h\" 'i' '\\'' r#\"j \" k\"# br\"l\" m";
        let code = code(text);
        let words: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(words, ["a", "f", "m"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn lifetimes_raw_identifiers_and_words_that_end_in_r_are_no_strings() {
        let text = "fn f<'a>(x: &'a str, r#type: u8) { bar(x) } // no";
        assert_eq!(
            code(text).trim_end(),
            text.trim_end_matches("// no").trim_end()
        );
    }

    #[test]
    fn test_items_are_blanked_wherever_they_stand() {
        let text = "#[cfg(test)]\nmod tests;\nuse a;\n#[cfg(test)]\nuse b::{c, d};\nfn e() {}\n\
                    #[cfg(test)]\nmod tests {\n    fn f() { g(); }\n}\nfn h() {}\n";
        let left = without_tests(text);
        assert_eq!(left.lines().count(), text.lines().count());
        let words: Vec<&str> = left.split_whitespace().collect();
        assert_eq!(words.join(" "), "use a; fn e() {} fn h() {}");
    }

    #[test]
    fn nested_groups_are_flattened() {
        let code = "pub(crate) use crate::{a, b::{self, c::D as E}, f::*};\ncrate::g::<H>();";
        assert_eq!(paths(code, 1), ["a", "b", "b::c::D", "f", "g"]);
    }

    #[test]
    fn groups_may_span_lines() {
        let code = "use crate::{\n    a::{\n        B,\n        c,\n    },\n    d,\n};\n";
        assert_eq!(paths(code, 1), ["a::B", "a::c", "d"]);
    }

    #[test]
    fn supers_that_reach_the_root_are_paths_of_the_root() {
        assert_eq!(paths("use super::a::B;", 1), ["a::B"]);
        assert!(paths("use super::a::B;", 2).is_empty());
        assert_eq!(paths("use super::super::{a, b};", 2), ["a", "b"]);
        assert!(paths("mod inner { use super::a; }", 1).is_empty());
        assert_eq!(paths("mod inner { use super::super::a; }", 1), ["a"]);
    }

    #[test]
    fn words_are_found_whole() {
        assert_eq!(lines_with_word("reqwest_x\n reqwest::y\n", "reqwest"), [2]);
    }
}
