//! The command line of the benches that measure in rounds.

/// `[--threads 1,2] [--rounds 7] [--FLAG]... [--NAME VALUE]... [part of an id]...`
pub(crate) struct Options {
    pub(crate) threads: Vec<usize>,
    pub(crate) rounds: usize,
    flags: Vec<&'static str>,
    values: Vec<(&'static str, String)>,
    parts: Vec<String>,
}

/// What a bench has beside what all have.
pub(crate) struct Known {
    pub(crate) flags: &'static [&'static str],
    /// Options with a value.
    pub(crate) values: &'static [&'static str],
    /// Numbers of threads where none are given.
    pub(crate) threads: &'static [usize],
}

impl Options {
    /// Of this process; `flags` are those that the bench has.
    pub(crate) fn parse(flags: &'static [&'static str]) -> Result<Self, lexopt::Error> {
        Self::parse_known(&Known { flags, values: &[], threads: &[1, 2] })
    }

    /// Of this process.
    pub(crate) fn parse_known(known: &Known) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let named = |names: &[&'static str], name: &str| names.iter().copied().find(|&known| known == name);
        let mut options = Self {
            threads: known.threads.to_vec(),
            rounds: 7,
            flags: Vec::new(),
            values: Vec::new(),
            parts: Vec::new(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("threads") => options.threads = numbers("threads", &parser.value()?.string()?)?,
                Long("rounds") => options.rounds = parser.value()?.parse()?,
                // What cargo passes to every bench.
                Long("bench") => {}
                Long(name) => match (named(known.flags, name), named(known.values, name)) {
                    (Some(flag), _) => options.flags.push(flag),
                    (_, Some(name)) => options.values.push((name, parser.value()?.string()?)),
                    _ => return Err(arg.unexpected()),
                },
                Value(part) => options.parts.push(part.string()?),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }

    /// Whether a flag was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// The value of an option, the last one if it was given several times.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// Whether a case was asked for: all are if no part of an id was given.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| id.contains(part))
    }
}

/// A list of numbers, `1,2`.
pub(crate) fn numbers(name: &str, list: &str) -> Result<Vec<usize>, String> {
    let numbers = list.split(',').map(str::parse).collect::<Result<_, _>>();
    numbers.map_err(|_| format!("--{name}: expected numbers, got {list}"))
}
