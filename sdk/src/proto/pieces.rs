//! The elements of a JSON array that comes piece by piece.
//!
//! Of a body of any size only the element that is not complete yet is kept. A list of ten thousand
//! instances is eleven megabytes of JSON; decoding it while it comes saves having to hold both.

use super::elements::NotAnArray;

/// Where in the array the next byte stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Before `[` or `null`.
    Before,
    /// Behind `[`: an element or `]`.
    First,
    /// Inside an element.
    Inside,
    /// Behind an element: `,` or `]`.
    Behind,
    /// Behind `,`: an element.
    Next,
    /// In `null`.
    Null,
    /// Behind `]`.
    After,
}

/// Cuts an array of objects into its elements while it comes.
#[derive(Debug)]
pub(crate) struct Splitter {
    stage: Stage,
    /// The beginning of an element whose end has not come.
    kept: Vec<u8>,
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// How many bytes came before this piece.
    before: usize,
    null: usize,
}

impl Splitter {
    pub(crate) const fn new() -> Self {
        Self {
            stage: Stage::Before,
            kept: Vec::new(),
            depth: 0,
            in_string: false,
            escaped: false,
            before: 0,
            null: 0,
        }
    }

    /// Takes in a piece, and hands out each element that it completes.
    pub(crate) fn push<E: From<NotAnArray>>(
        &mut self,
        piece: &[u8],
        mut found: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // Where the current element begins in this piece; 0 if it began in an earlier one.
        let mut start = 0;
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if self.stage == Stage::Inside {
                let rest = piece.get(at..).unwrap_or_default();
                let Some(end) = self.end_in(rest) else {
                    break;
                };
                at += end;
                let text = piece.get(start..at).unwrap_or_default();
                if self.kept.is_empty() {
                    found(text)?;
                } else {
                    self.kept.extend_from_slice(text);
                    found(&self.kept)?;
                    self.kept.clear();
                }
                self.stage = Stage::Behind;
                continue;
            }
            self.stage = match (self.stage, byte) {
                (stage, b' ' | b'\n' | b'\r' | b'\t') => stage,
                (Stage::Before, b'[') => Stage::First,
                (Stage::Before, b'n') | (Stage::Null, _) if NULL.get(self.null) == Some(&byte) => {
                    self.null += 1;
                    Stage::Null
                }
                (Stage::First | Stage::Next, b'{') => {
                    start = at;
                    Stage::Inside
                }
                (Stage::Behind, b',') => Stage::Next,
                (Stage::First | Stage::Behind, b']') => Stage::After,
                _ => {
                    return Err(NotAnArray {
                        at: self.before + at,
                    }
                    .into());
                }
            };
            // An element's first byte is looked at again from inside.
            at += usize::from(self.stage != Stage::Inside);
        }
        if self.stage == Stage::Inside {
            self.kept
                .extend_from_slice(piece.get(start..).unwrap_or_default());
        }
        self.before += piece.len();
        Ok(())
    }

    /// How many bytes have come.
    pub(crate) const fn came(&self) -> usize {
        self.before
    }

    /// Says whether the array was complete.
    pub(crate) fn finish(&self) -> Result<(), NotAnArray> {
        match self.stage {
            Stage::After => Ok(()),
            Stage::Null if self.null == NULL.len() => Ok(()),
            _ => Err(NotAnArray { at: self.before }),
        }
    }

    /// Behind the end of the current element, if it stands in `rest`.
    fn end_in(&mut self, rest: &[u8]) -> Option<usize> {
        for (at, &byte) in rest.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => self.depth += 1,
                b'}' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

const NULL: &[u8] = b"null";

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of a body that comes in pieces of this size.
    fn split(body: &str, size: usize) -> Result<Vec<String>, NotAnArray> {
        let (mut splitter, mut all) = (Splitter::new(), Vec::new());
        for piece in body.as_bytes().chunks(size) {
            splitter.push(piece, |text| {
                all.push(String::from_utf8(text.to_vec()).unwrap());
                Ok::<(), NotAnArray>(())
            })?;
        }
        splitter.finish().map(|()| all)
    }

    #[test]
    fn elements_are_found_wherever_a_piece_ends() {
        let body = " [ {\"a\":\"}]\\\"{\\\\\"} ,\n{\"b\":{\"c\":[1,{}]}}\t, {} ] \n";
        for size in 1..=body.len() {
            let texts = split(body, size).unwrap();
            assert_eq!(
                texts,
                [r#"{"a":"}]\"{\\"}"#, r#"{"b":{"c":[1,{}]}}"#, "{}"],
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn nothing_and_null_have_no_elements() {
        for body in ["[]", " [ ] ", "null", " null\n"] {
            assert_eq!(split(body, 1), Ok(vec![]), "{body}");
        }
    }

    #[test]
    fn what_is_not_an_array_of_objects_is_refused() {
        for body in [
            "", " ", "{}", "[", "[{}", "[{},", "[{},]", "[{}{}]", "[1]", "[{}]]", "[{\"a]", "nul",
            "nulll", "[{]", "[{}] x", "n", "nxll",
        ] {
            for size in 1..=3 {
                assert!(split(body, size).is_err(), "{body}");
            }
        }
    }

    #[test]
    fn of_what_was_handed_out_nothing_is_kept() {
        let mut splitter = Splitter::new();
        let element = format!("{{\"a\":\"{}\"}},", "x".repeat(100));
        let mut found = 0;
        splitter.push(b"[", |_| Ok::<(), NotAnArray>(())).unwrap();
        for _ in 0..1000 {
            splitter
                .push(element.as_bytes(), |_| {
                    found += 1;
                    Ok::<(), NotAnArray>(())
                })
                .unwrap();
        }
        assert_eq!((found, splitter.kept.len()), (1000, 0));
    }
}
