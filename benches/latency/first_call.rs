//! The first call of a process, step by step. A process has one, so this program starts itself again for each.

use super::calls::{SENTENCE, TINY};
use super::common::{Case, Tensors};
use lucid_attention::{Inputs, Level, Outputs, Plan, Problem, View, ViewMut, attention};
use std::error::Error;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

/// How many processes a median is of.
pub(crate) const PROCESSES: usize = 21;

/// What is told: microseconds of each step, of all up to the first result, and the threads the process has in the end.
pub(crate) const STEPS: [&str; 7] =
    ["level", "plan", "workspace", "first run", "second run", "first result", "threads"];

/// Where a process has no such step, or the system does not tell.
type Steps = [Option<f64>; STEPS.len()];

/// One line of the table.
pub(crate) struct Setup {
    /// A plan, a workspace and runs; else the function that does it all.
    planned: bool,
    case: Case,
}

/// Calls that stay on their thread, and calls that rayon's global pool is started for.
pub(crate) const SETUPS: [Setup; 4] = [
    Setup { planned: true, case: TINY },
    Setup { planned: false, case: TINY },
    Setup { planned: true, case: SENTENCE },
    Setup { planned: false, case: SENTENCE },
];

impl Setup {
    pub(crate) fn id(&self) -> String {
        format!("first_call/{}/{}", if self.planned { "rows" } else { "function" }, self.case)
    }
}

/// Medians over fresh processes.
pub(crate) fn measure(setup: &Setup) -> Result<Steps, Box<dyn Error>> {
    let mut found = Vec::new();
    for _ in 0..PROCESSES {
        let mut process = Command::new(std::env::current_exe()?);
        let output = process.args(["--first-call", &setup.id()]).stderr(Stdio::inherit()).output()?;
        found.push(serde_json::from_slice::<Steps>(&output.stdout)?);
    }
    Ok(std::array::from_fn(|step| {
        let mut times: Vec<f64> = found.iter().filter_map(|steps| steps[step]).collect();
        times.sort_unstable_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }))
}

/// What the fresh process does.
pub(crate) fn answer(id: &str) -> Result<(), Box<dyn Error>> {
    let setup = SETUPS.into_iter().find(|setup| setup.id() == id).ok_or("no such first call")?;
    let case = &setup.case;
    let tensors = Tensors::<f32>::new(case);
    let k = View::new(&tensors.k, case.kv_shape())?;
    let inputs =
        Inputs::new(View::new(&tensors.q, case.q_shape())?, k, View::new(&tensors.v, case.kv_shape())?);
    let steps = if setup.planned { planned(case, &inputs)? } else { function(&inputs)? };
    println!("{}", serde_json::to_string(&steps)?);
    Ok(())
}

fn planned(case: &Case, inputs: &Inputs<'_, f32, f32>) -> Result<Steps, Box<dyn Error>> {
    let mut out = vec![0.0; case.q_shape().iter().product()];
    let mut lap = laps();
    black_box(Level::detect()?);
    let level = lap();
    let plan = Plan::new(&Problem::of(inputs))?;
    let planned = lap();
    let mut workspace = plan.workspace()?;
    let allocated = lap();
    let mut run = || plan.run(inputs, Outputs::new(ViewMut::new(&mut out, case.q_shape())?), &mut workspace);
    run()?;
    let first = lap();
    run()?;
    let second = lap();
    let result = level + planned + allocated + first;
    Ok([Some(level), Some(planned), Some(allocated), Some(first), Some(second), Some(result), threads()])
}

fn function(inputs: &Inputs<'_, f32, f32>) -> Result<Steps, Box<dyn Error>> {
    let mut lap = laps();
    black_box(attention(inputs)?);
    let first = lap();
    black_box(attention(inputs)?);
    let second = lap();
    Ok([None, None, None, Some(first), Some(second), Some(first), threads()])
}

/// A watch: microseconds since it was last looked at.
fn laps() -> impl FnMut() -> f64 {
    let mut last = Instant::now();
    move || {
        let now = Instant::now();
        let micros = (now - last).as_secs_f64() * 1e6;
        last = now;
        micros
    }
}

/// Threads of this process, where the system lists them.
fn threads() -> Option<f64> {
    std::fs::read_dir("/proc/self/task").ok().map(|tasks| tasks.count() as f64)
}
