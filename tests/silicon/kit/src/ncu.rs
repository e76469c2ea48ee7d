//! What Nsight Compute is asked for, and what it says: rows of CSV, a metric of a launch each.

use serde_json::{Map, Value, json};

/// Counters that stand beside those of the emulator, by the names that the report has for them.
pub const METRICS: [(&str, &str); 14] = [
    ("time, ns", "gpu__time_duration.sum"),
    ("clocks", "sm__cycles_elapsed.max"),
    ("read from memory, bytes", "dram__bytes_read.sum"),
    ("written to memory, bytes", "dram__bytes_write.sum"),
    ("sectors of the second-level cache", "lts__t_sectors.sum"),
    ("sectors asked of global memory by loads", "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum"),
    ("sectors asked of global memory by stores", "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum"),
    ("bank conflicts", "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"),
    ("wavefronts of shared memory", "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum"),
    ("sectors of local memory", "l1tex__t_sectors_pipe_lsu_mem_local_op_ld.sum"),
    ("thread instructions", "smsp__thread_inst_executed.sum"),
    ("warp instructions", "smsp__inst_executed.sum"),
    ("instructions of the tensor pipe", "sm__inst_executed_pipe_tensor.sum"),
    ("warps that issue, % of clocks", "smsp__issue_active.avg.pct_of_peak_sustained_active"),
];

/// Sections to ask for where a metric's name is not known to this version.
pub const SECTIONS: [&str; 4] = ["SpeedOfLight", "MemoryWorkloadAnalysis", "LaunchStats", "Occupancy"];

pub fn arguments(by_sections: bool) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--clock-control",
        "none",
        "--csv",
        "--print-units",
        "base",
        "--kernel-name",
        "regex:^(fused_step|stream_|scale_)",
    ]
    .map(Into::into)
    .into();
    if by_sections {
        arguments.extend(SECTIONS.iter().flat_map(|section| ["--section".into(), (*section).into()]));
    } else {
        arguments.push("--metrics".into());
        arguments.push(METRICS.map(|(_, metric)| metric).join(","));
    }
    arguments
}

/// The cells of a line of CSV, quoted or not.
fn cells(line: &str) -> Vec<String> {
    let (mut all, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => all.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    all.push(cell);
    all
}

/// A row of JSON for each launch: its kernel, and its metrics by their names in the report. Empty where the output has no table.
pub fn launches(output: &str) -> Vec<Value> {
    let mut lines = output.lines().skip_while(|line| !line.starts_with("\"ID\""));
    let Some(head) = lines.next().map(cells) else { return Vec::new() };
    let column = |name: &str| head.iter().position(|cell| cell == name);
    let (Some(id), Some(kernel), Some(metric), Some(value)) =
        (column("ID"), column("Kernel Name"), column("Metric Name"), column("Metric Value"))
    else {
        return Vec::new();
    };
    let mut launches: Vec<(String, Map<String, Value>)> = Vec::new();
    for row in lines.filter(|line| line.starts_with('"')).map(cells).filter(|row| row.len() == head.len()) {
        if launches.last().is_none_or(|(last, _)| *last != row[id]) {
            let name = row[kernel].split('(').next().unwrap_or_default().to_string();
            launches.push((row[id].clone(), Map::from_iter([("kernel".to_string(), json!(name))])));
        }
        let name = METRICS.iter().find(|(_, of)| *of == row[metric]).map_or(row[metric].as_str(), |(name, _)| name);
        // Thousands may have commas.
        let number = row[value].replace(',', "").parse::<f64>().map_or(json!(row[value]), |number| json!(number));
        if let Some((_, launch)) = launches.last_mut() {
            launch.insert(name.to_string(), number);
        }
    }
    launches.into_iter().map(|(_, launch)| Value::Object(launch)).collect()
}

/// Sums over a step's launches, of what can be summed.
pub fn sum(launches: &[Value]) -> Map<String, Value> {
    let mut sums = Map::new();
    for (name, metric) in METRICS {
        let all: Vec<f64> = launches.iter().filter_map(|launch| launch[name].as_f64()).collect();
        if !all.is_empty() && !metric.contains("pct") {
            sums.insert(name.to_string(), json!(all.iter().sum::<f64>()));
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"==PROF== Connected to process 12
a line of the program's own
==PROF== Disconnected from process 12
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC","Section Name","Metric Name","Metric Unit","Metric Value"
"0","12","cuda","127.0.0.1","stream_forward_bf16_tensor(MarginLossCall, MarginLossChunk)","1","7","(128, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_read.sum","byte","1,234,560"
"0","12","cuda","127.0.0.1","stream_forward_bf16_tensor(MarginLossCall, MarginLossChunk)","1","7","(128, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","smsp__issue_active.avg.pct_of_peak_sustained_active","%","51.25"
"1","12","cuda","127.0.0.1","stream_gradient_bf16_tensor","1","7","(128, 1, 1)","(132, 1, 1)","0","9.0","Command line profiler metrics","dram__bytes_read.sum","byte","440"
"#;

    #[test]
    fn the_profilers_table() {
        let rows = launches(OUTPUT);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["kernel"], "stream_forward_bf16_tensor");
        assert_eq!(rows[0]["read from memory, bytes"], json!(1_234_560.0));
        assert_eq!(rows[0]["warps that issue, % of clocks"], json!(51.25));
        let sums = sum(&rows);
        assert_eq!(sums["read from memory, bytes"], json!(1_235_000.0));
        assert!(!sums.contains_key("warps that issue, % of clocks"));
        assert!(launches("==ERROR== no such metric\n").is_empty());
        assert_eq!(cells(r#""a ""b""",,c"#), ["a \"b\"", "", "c"]);
    }
}
