//! Lists, for PTX files, the instructions that the interpreter does not know yet, by how many kernels have them.

use std::collections::BTreeMap;

use ptx_emulator::{Memory, Module};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for path in std::env::args().skip(1) {
        let memory = Memory::new(1 << 30);
        let module = Module::load(&std::fs::read_to_string(&path)?, &memory)?;
        let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
        let (mut kernels, mut whole) = (0, 0);
        for name in module.kernels() {
            let kernel = module.kernel(name)?;
            let mut opcodes: Vec<String> = kernel
                .unsupported()
                .map(|(_, text)| text.split(' ').find(|word| !word.starts_with('@')).unwrap_or("").into())
                .collect();
            opcodes.sort();
            opcodes.dedup();
            kernels += 1;
            whole += usize::from(opcodes.is_empty());
            opcodes.into_iter().for_each(|opcode| *unknown.entry(opcode).or_default() += 1);
        }
        println!("{path}: {whole} of {kernels} kernels known whole");
        unknown.iter().for_each(|(opcode, count)| println!("  {opcode}: {count} kernels"));
    }
    Ok(())
}
