//! The syntax tree of one kernel to its decoded form: dense registers, resolved branches, instructions of `instructions/`.
//!
//! Calls are inlined: a call site gets its own copy of the callee with registers of its own, so that a kernel is one flat list of
//! instructions and a warp's divergence is a set of program counters. Recursion and calls through pointers are refused.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::instructions::{self, control, print};
use crate::kernel::{Inst, Kernel, Origin, Registers};
use crate::line::{Line, Touches};
use crate::names::{Meaning, Names};
use crate::operand::{Place, Pred};
use crate::poison::Flow;
use crate::step::Execute;
use crate::syntax::{Function, Instruction, Operand, Source, Space, Statement, Variable};

/// Deepest nesting of calls.
const MOST_CALLS: usize = 64;

struct Decoder<'s> {
    source: &'s Source,
    kernel: Kernel,
    names: Names<'s>,
    touches: Cell<Touches>,
    /// Labels of each call's body that is being decoded
    labels: Vec<HashMap<String, u32>>,
    /// Branches to labels not yet seen: instruction and label
    pending: Vec<Vec<(usize, String, u32)>>,
    /// Branches to the end of the inlined body
    returns: Vec<Vec<usize>>,
}

/// Decodes the kernel `name`. `variables` are the addresses of the module's variables in memory.
pub(crate) fn decode(source: &Source, name: &str, variables: &HashMap<String, (Space, u64)>) -> Result<Kernel> {
    let function = source.functions.iter().find(|f| f.entry && f.name == name);
    let Some((function, body)) = function.and_then(|f| f.body.as_ref().map(|body| (f, body))) else {
        return Err(Error::NotFound(format!("no kernel {name} in the module")));
    };
    let limit = |wanted: &str| {
        let numbers = function.directives.iter().find(|(d, _)| d == wanted).map(|(_, numbers)| numbers);
        numbers.map(|numbers| numbers.iter().fold(1u64, |product, &n| product.saturating_mul(n)))
    };
    let kernel = Kernel {
        name: name.into(),
        code: Vec::new(),
        flows: Vec::new(),
        origins: Vec::new(),
        registers: Registers::default(),
        constants: Vec::new(),
        granule: 0,
        sequential: false,
        local: 0,
        shared: 0,
        parameters: Vec::new(),
        most_threads: limit(".reqntid").or(limit(".maxntid")),
    };
    let mut decoder = Decoder {
        source,
        kernel,
        names: Names::new(variables),
        touches: Cell::new(Touches { granule: 3, sequential: false }),
        labels: vec![HashMap::new()],
        pending: vec![Vec::new()],
        returns: Vec::new(),
    };
    // Static shared memory of the module, then that of the body; `.extern` arrays start where both end.
    for variable in source.variables.iter().filter(|v| v.space == Space::Shared && v.size > 0) {
        decoder.declare(variable);
    }
    let mut offset = 0usize;
    for parameter in &function.parameters {
        offset = offset.next_multiple_of(parameter.align.max(1));
        decoder.kernel.parameters.push((offset, parameter.size));
        decoder.names.scopes[0].insert(parameter.name.clone(), Meaning::Parameter(offset));
        offset += parameter.size;
    }
    decoder.shared_of(body, 0)?;
    let dynamic = || source.variables.iter().filter(|v| v.space == Space::Shared && v.size == 0);
    let align = dynamic().map(|v| v.align).fold(16, usize::max);
    decoder.kernel.shared = decoder.kernel.shared.next_multiple_of(align);
    for variable in dynamic() {
        let start = decoder.kernel.shared as u64;
        decoder.names.scopes[0].insert(variable.name.clone(), Meaning::Address(Space::Shared, start));
    }
    decoder.body(body)?;
    decoder.resolve()?;
    decoder.push(None, control::exit(), 0);
    let Decoder { mut kernel, names, touches, .. } = decoder;
    (kernel.registers, kernel.constants) = names.into_registers();
    (kernel.granule, kernel.sequential) = (touches.get().granule, touches.get().sequential);
    Ok(kernel)
}

impl<'s> Decoder<'s> {
    /// Declares the shared variables of a body and of the functions it calls, once each, ahead of the rest.
    fn shared_of(&mut self, body: &'s [Statement], depth: usize) -> Result<()> {
        if depth > MOST_CALLS {
            return Err(Error::NotFound(format!("{} calls itself, or nests calls too deeply", self.kernel.name)));
        }
        for statement in body {
            match statement {
                Statement::Variable(variable) if variable.space == Space::Shared => self.declare(variable),
                Statement::Scope(inner) => self.shared_of(inner, depth)?,
                Statement::Instruction(instruction) if instruction.opcode[0] == "call" => {
                    if let Some(callee) = self.callee(instruction)
                        && let Some(body) = &callee.body
                    {
                        self.shared_of(body, depth + 1)?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn callee(&self, instruction: &Instruction) -> Option<&'s Function> {
        instruction.operands.iter().find_map(|operand| match operand {
            // A function may be declared before it is defined.
            Operand::Name(name) => {
                let named = || self.source.functions.iter().filter(|f| f.name == *name);
                named().find(|f| f.body.is_some()).or_else(|| named().next())
            }
            _ => None,
        })
    }

    fn declare(&mut self, variable: &Variable) {
        let place = |end: &mut usize| {
            *end = end.next_multiple_of(variable.align.max(1));
            let start = *end;
            *end += variable.size;
            start as u64
        };
        let meaning = match variable.space {
            Space::Shared => {
                // Functions called from two places share their variable.
                if self.names.scopes[0].contains_key(&variable.name) {
                    return;
                }
                let start = place(&mut self.kernel.shared);
                self.names.scopes[0].insert(variable.name.clone(), Meaning::Address(Space::Shared, start));
                return;
            }
            // Parameters of calls lie in the thread's own memory.
            _ => Meaning::Address(Space::Local, place(&mut self.kernel.local)),
        };
        self.names.define(variable.name.clone(), meaning);
    }

    fn push(&mut self, guard: Option<Pred>, code: Arc<dyn Execute>, origin: u32) {
        self.push_with(guard, code, Flow::default(), origin);
    }

    fn push_with(&mut self, guard: Option<Pred>, code: Arc<dyn Execute>, flow: Flow, origin: u32) {
        self.kernel.code.push(Inst { guard, code, origin });
        self.kernel.flows.push(flow);
    }

    /// Points the branch at `at` at an instruction.
    fn aim(&mut self, at: usize, target: u32) {
        self.kernel.code[at].code = control::branch(target);
    }

    /// A branch whose target is not known yet; gives its place.
    fn branch(&mut self, guard: Option<Pred>, origin: u32) -> usize {
        self.push(guard, control::branch(0), origin);
        self.kernel.code.len() - 1
    }

    fn body(&mut self, body: &'s [Statement]) -> Result<()> {
        for statement in body {
            match statement {
                Statement::Label(label) => {
                    let here = self.kernel.code.len() as u32;
                    if let Some(labels) = self.labels.last_mut() {
                        labels.insert(label.clone(), here);
                    }
                }
                Statement::Registers(ty, names) => {
                    for (name, count) in names {
                        let all: Vec<String> = match count {
                            None => vec![name.clone()],
                            Some(count) => (0..*count).map(|i| format!("{name}{i}")).collect(),
                        };
                        for name in all {
                            let register = self.names.register(*ty);
                            self.names.define(name, register);
                        }
                    }
                }
                Statement::Variable(variable) => self.declare(variable),
                Statement::Scope(inner) => {
                    self.names.scopes.push(HashMap::new());
                    self.body(inner)?;
                    self.names.scopes.pop();
                }
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        Ok(())
    }

    /// Points the pending branches of the innermost body at its labels.
    fn resolve(&mut self) -> Result<()> {
        let (labels, pending) = (self.labels.pop().unwrap_or_default(), self.pending.pop().unwrap_or_default());
        for (at, label, line) in pending {
            let Some(&to) = labels.get(&label) else {
                return Err(Error::syntax(line, format!("no label {label}")));
            };
            self.aim(at, to);
        }
        Ok(())
    }

    fn instruction(&mut self, instruction: &'s Instruction) -> Result<()> {
        let origin = self.kernel.origins.len() as u32;
        self.kernel.origins.push(Origin {
            text: instruction.to_string(),
            line: instruction.line,
            location: instruction.location,
        });
        let guard = match &instruction.guard {
            None => None,
            Some((name, negated)) => match self.names.meaning(name) {
                Some(Meaning::Predicate(register)) => Some(Pred { register, negated: *negated }),
                _ => {
                    return Err(Error::syntax(instruction.line, format!("{name} is no predicate")));
                }
            },
        };
        match instruction.opcode[0].as_str() {
            "call" => return self.call(instruction, guard, origin),
            "ret" => {
                if self.returns.is_empty() {
                    self.push(guard, control::exit(), origin);
                    return Ok(());
                }
                let at = self.branch(guard, origin);
                if let Some(returns) = self.returns.last_mut() {
                    returns.push(at);
                }
                return Ok(());
            }
            "bra" => {
                let Some(Operand::Name(label)) = instruction.operands.first() else {
                    return Err(Error::syntax(instruction.line, "a branch without a label"));
                };
                let at = self.branch(guard, origin);
                if let Some(pending) = self.pending.last_mut() {
                    pending.push((at, label.clone(), instruction.line));
                }
                return Ok(());
            }
            _ => {}
        }
        // What is not known is a fault of the launch that reaches it, not of the module that contains it.
        let line = Line::new(instruction, &self.names, &self.touches);
        let code = instructions::decode(&line).unwrap_or_else(|| Arc::new(control::Unknown));
        let flow = line.take_flow();
        self.push_with(guard, code, flow, origin);
        Ok(())
    }

    /// `vprintf`, by the names of its results and its arguments. What it prints is to be a matter of the seed: blocks take turns.
    fn print(&self, [results, arguments]: &[Vec<String>; 2]) -> Option<Arc<dyn Execute>> {
        let place = |name: &String| match self.names.meaning(name)? {
            Meaning::Address(space, address) => Some(Place { space: Some(space), base: None, offset: address as i64 }),
            _ => None,
        };
        let [format, values] = &arguments[..] else { return None };
        self.touches.set(Touches { sequential: true, ..self.touches.get() });
        print::print(place(format)?, place(values)?, results.first().and_then(place))
    }

    /// Inlines a call: `call (results), name, (arguments);`
    fn call(&mut self, instruction: &'s Instruction, guard: Option<Pred>, origin: u32) -> Result<()> {
        let Some(callee) = self.callee(instruction) else {
            self.push(guard, Arc::new(control::Unknown), origin);
            return Ok(());
        };
        let mut names: [Vec<String>; 2] = [Vec::new(), Vec::new()];
        let mut list = 0;
        for operand in &instruction.operands {
            match operand {
                Operand::List(parts) => {
                    for part in parts {
                        let Operand::Name(name) = part else {
                            return Err(Error::Unsupported { line: instruction.line, text: instruction.to_string() });
                        };
                        names[list].push(name.clone());
                    }
                }
                _ => list = 1,
            }
        }
        let Some(body) = &callee.body else {
            let code = match callee.name.as_str() {
                "vprintf" => self.print(&names),
                // A failed assertion stops the kernel.
                "__assertfail" => Some(control::trap()),
                _ => None,
            };
            self.push(guard, code.unwrap_or_else(|| Arc::new(control::Unknown)), origin);
            return Ok(());
        };
        if self.returns.len() > MOST_CALLS {
            return Err(Error::NotFound(format!("{} calls itself, or nests calls too deeply", callee.name)));
        }
        // The callee sees its parameters and the module, not the caller's names: its scopes start anew.
        let mut scope = HashMap::new();
        for (formals, actuals) in [(&callee.results, &names[0]), (&callee.parameters, &names[1])] {
            for (formal, actual) in formals.iter().zip(actuals) {
                let Some(meaning) = self.names.meaning(actual) else {
                    return Err(Error::syntax(instruction.line, format!("{actual} is not declared")));
                };
                scope.insert(formal.name.clone(), meaning);
            }
        }
        // Lanes that do not call jump over the body.
        let skip = guard.map(|guard| self.branch(Some(Pred { negated: !guard.negated, ..guard }), origin));
        let outer = std::mem::take(&mut self.names.scopes);
        self.names.scopes = vec![outer[0].clone(), scope];
        self.labels.push(HashMap::new());
        self.pending.push(Vec::new());
        self.returns.push(Vec::new());
        self.body(body)?;
        self.resolve()?;
        let end = self.kernel.code.len() as u32;
        let returns = self.returns.pop().unwrap_or_default();
        returns.into_iter().chain(skip).for_each(|at| self.aim(at, end));
        self.names.scopes = outer;
        Ok(())
    }
}
