//! The command line of the benches that measure in rounds.

/// `[--threads 1,2] [--rounds 7] [--FLAG]... [part of an id]...`
pub(crate) struct Options {
    pub(crate) threads: Vec<usize>,
    pub(crate) rounds: usize,
    flags: Vec<&'static str>,
    parts: Vec<String>,
}

impl Options {
    /// Of this process; `flags` are those that the bench has.
    pub(crate) fn parse(flags: &[&'static str]) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Self { threads: vec![1, 2], rounds: 7, flags: Vec::new(), parts: Vec::new() };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("threads") => {
                    let list = parser.value()?.string()?;
                    let threads = list.split(',').map(str::parse).collect::<Result<_, _>>();
                    options.threads =
                        threads.map_err(|_| format!("--threads: expected numbers, got {list}"))?;
                }
                Long("rounds") => options.rounds = parser.value()?.parse()?,
                // What cargo passes to every bench.
                Long("bench") => {}
                Long(name) => match flags.iter().find(|&&flag| flag == name) {
                    Some(flag) => options.flags.push(flag),
                    None => return Err(arg.unexpected()),
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

    /// Whether a case was asked for: all are if no part of an id was given.
    pub(crate) fn wants(&self, id: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|part| id.contains(part))
    }
}
