//! One problem's ways, timed turn by turn as standard input asks: for what compares them with another program (python-ref/bench_torch.py), and
//! for profilers.

use std::io::{BufRead, Write};

use candle_core::DType;

use crate::case::{Case, Result, Way};

/// `problem` is "N,C,D,dtype". A line "check" checks every way; each line "repetitions way" of the input is answered by the milliseconds of a call.
pub fn serve(problem: &str, time: fn(&mut Case, Way, usize) -> Result<f64>) -> Result<()> {
    let fields: Vec<&str> = problem.split(',').collect();
    let [n, c, d, dtype] = fields[..] else {
        return Err(format!("a problem is N,C,D,dtype, not {problem}").into());
    };
    let dtype = match dtype {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => return Err(format!("the dtype is f32 or bf16, not {other}").into()),
    };
    let mut case = Case::new(n.parse()?, c.parse()?, d.parse()?, dtype)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "check" {
            case.check()?;
            case.floor.choose_parallelism();
            println!("ok");
        } else {
            let (repetitions, name) = line.split_once(' ').ok_or("a line is: repetitions way")?;
            let way = Way::ALL.into_iter().find(|way| way.name() == name).ok_or_else(|| format!("no way {name}"))?;
            println!("{}", 1e3 * time(&mut case, way, repetitions.parse()?)?);
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
