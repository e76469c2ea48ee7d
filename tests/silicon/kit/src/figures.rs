//! `kernels/figures.md`'s table as raw numbers: what the emulator counted of a step.

use serde_json::{Value, json};

/// Bytes of X, W, dX and dW, each once.
fn compulsory(n: u64, c: u64, d: u64, element: u64) -> u64 {
    2 * element * d * (n + c)
}

/// A list of lines, ratios multiplied out; `null` where the table has no number.
pub fn raw(table: &str) -> Result<Value, String> {
    let cells = |line: &str| -> Vec<String> {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()
    };
    let mut lines = table.lines().filter(|line| line.starts_with('|'));
    let head = cells(lines.next().ok_or("the file has no table")?);
    let known = [
        "N",
        "C",
        "D",
        "type",
        "",
        "launches",
        "cuBLAS",
        "requested",
        "distinct",
        "bank conflicts",
        "of ldmatrix",
        "mma flop / 2NCD",
        "MB",
        "M instructions",
    ];
    if head != known {
        return Err(format!("the table's columns are {head:?}, not {known:?}"));
    }
    let mut rows = Vec::new();
    for line in lines.skip(1) {
        let cells = cells(line);
        let number = |i: usize| cells.get(i).and_then(|cell| cell.parse::<f64>().ok());
        let (Some(n), Some(c), Some(d)) = (number(0), number(1), number(2)) else {
            return Err(format!("no sizes in {line}"));
        };
        let element = match cells[3].as_str() {
            "f32" => 4,
            "f16" | "bf16" => 2,
            other => return Err(format!("no type {other}")),
        };
        let bytes = compulsory(n as u64, c as u64, d as u64, element);
        let of_bytes = |i| number(i).map(|ratio| (ratio * bytes as f64).round());
        rows.push(json!({
            "size": [n as u64, c as u64, d as u64], "type": cells[3], "way": cells[4],
            "compulsory bytes": bytes, "launches": number(5), "products by cuBLAS": number(6),
            "requested bytes": of_bytes(7), "distinct bytes": of_bytes(8),
            "bank conflicts": number(9), "bank conflicts of matrix loads": number(10),
            "mma flop": number(11).map(|ratio| (ratio * 2.0 * n * c * d).round()),
            "memory, MB": number(12), "thread instructions": number(13).map(|millions| millions * 1e6),
        }));
    }
    Ok(Value::Array(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../kernels/figures.md");
        let raw = raw(&std::fs::read_to_string(path).unwrap()).unwrap();
        let rows = raw.as_array().unwrap();
        let row = rows
            .iter()
            .find(|row| row["size"] == json!([256, 1000, 2048]) && row["type"] == "bf16" && row["way"] == "fused_step");
        let row = row.expect("a line that the kit compares with");
        assert_eq!(row["compulsory bytes"], json!(2 * 2 * 2048 * 1256));
        assert!(row["distinct bytes"].as_f64().unwrap() > 1e7 && row["mma flop"].as_f64().unwrap() > 2e9, "{row}");
    }
}
