//! Calm output: colour and redrawing only on a terminal.

use std::{
    io::{self, IsTerminal, Write},
    time::Instant,
};

/// Writes the lines of a demo or a benchmark.
#[derive(Debug)]
pub struct Terminal {
    colour: bool,
    start: Instant,
}

impl Default for Terminal {
    fn default() -> Self {
        Self { colour: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(), start: Instant::now() }
    }
}

impl Terminal {
    /// A header, with an empty line before it.
    pub fn section(&self, title: &str) {
        println!("\n{}", self.paint("1", title));
        self.flush();
    }

    /// Plain text, indented.
    pub fn text(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
        self.flush();
    }

    /// Something that takes a while and is starting.
    pub fn step(&self, what: &str) {
        let at = format!("{:5.1} s", self.start.elapsed().as_secs_f32());
        println!("  {} {what}", self.paint("2", &at));
        self.flush();
    }

    /// A check and its outcome.
    pub fn check(&self, good: bool, what: &str, figure: &str) {
        let mark = if good { self.paint("32", "ok  ") } else { self.paint("1;31", "FAIL") };
        println!("  {mark} {what:<46} {figure}");
        self.flush();
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn flush(&self) {
        let _ = io::stdout().flush();
    }
}
