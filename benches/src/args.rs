//! The options all bench programs take.

use crate::Outcome;

/// How to run and what to print.
#[derive(Debug, Clone, Default)]
pub struct Args {
    /// Short windows, so that the whole program ends within a minute (`--quick`).
    pub quick: bool,
    /// One JSON line per figure instead of tables (`--json`).
    pub json: bool,
    /// The benches to run; all of them if empty (`--only NAME…`).
    pub only: Vec<String>,
}

impl Args {
    /// Reads the command line of a program that has these benches.
    ///
    /// # Errors
    /// An unknown option or bench; the message is the usage.
    pub fn parse(arguments: impl IntoIterator<Item = String>, benches: &[&str]) -> Outcome<Self> {
        let usage = || {
            format!(
                "options: [--quick] [--json] [--only NAME…]; the names are {}",
                benches.join(", ")
            )
        };
        let mut args = Self::default();
        let mut arguments = arguments.into_iter().peekable();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => args.quick = true,
                "--json" => args.json = true,
                "--only" => {
                    while let Some(name) = arguments.next_if(|next| !next.starts_with("--")) {
                        if !benches.contains(&name.as_str()) {
                            return Err(format!("no bench {name}; {}", usage()).into());
                        }
                        args.only.push(name);
                    }
                    if args.only.is_empty() {
                        return Err(usage().into());
                    }
                }
                _ => return Err(usage().into()),
            }
        }
        Ok(args)
    }

    /// Whether this bench was asked for.
    #[must_use]
    pub fn wants(&self, bench: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == bench)
    }

    /// How many rounds: 7, or 5 with `--quick`.
    #[must_use]
    pub fn rounds(&self) -> usize {
        if self.quick { 5 } else { 7 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Outcome<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned), &["get", "put"])
    }

    #[test]
    fn only_takes_every_name_up_to_the_next_option() {
        let args = parse("--only get put --quick").unwrap();
        assert!(args.quick && !args.json);
        assert!(args.wants("get") && args.wants("put") && !args.wants("other"));
    }

    #[test]
    fn an_unknown_bench_is_refused_with_the_names_there_are() {
        let error = parse("--only gte").unwrap_err().to_string();
        assert!(
            error.contains("no bench gte") && error.contains("get, put"),
            "{error}"
        );
    }
}
