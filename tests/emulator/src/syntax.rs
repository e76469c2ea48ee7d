//! PTX text to a syntax tree: what nvcc writes, no more. Operands keep their names; `names.rs` resolves them.

use crate::error::{Error, Result};

/// A state space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// Registers
    Reg,
    /// Parameters of kernels and functions
    Param,
    /// A block's own memory
    Shared,
    /// Device memory
    Global,
    /// Device memory that kernels only read
    Const,
    /// A thread's own memory
    Local,
}

/// The size and kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Type {
    /// A predicate
    Pred,
    /// Untyped bits, of this many bytes
    Bits(u8),
    /// Unsigned, of this many bytes
    Unsigned(u8),
    /// Signed, of this many bytes
    Signed(u8),
    /// f16
    F16,
    /// Two f16
    F16x2,
    /// bf16
    Bf16,
    /// Two bf16
    Bf16x2,
    /// Two numbers of 8 bits, of which 4 are the exponent
    E4m3x2,
    /// The same with 5
    E5m2x2,
    /// tf32, in 32 bits
    Tf32,
    /// f32
    F32,
    /// f64
    F64,
}

impl Type {
    /// The type of a suffix such as `u32`.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::Bits(1),
            "b16" => Type::Bits(2),
            "b32" => Type::Bits(4),
            "b64" => Type::Bits(8),
            "b128" => Type::Bits(16),
            "u8" => Type::Unsigned(1),
            "u16" => Type::Unsigned(2),
            "u32" => Type::Unsigned(4),
            "u64" => Type::Unsigned(8),
            "s8" => Type::Signed(1),
            "s16" => Type::Signed(2),
            "s32" => Type::Signed(4),
            "s64" => Type::Signed(8),
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "e4m3x2" => Type::E4m3x2,
            "e5m2x2" => Type::E5m2x2,
            "tf32" => Type::Tf32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    }

    /// Bytes in memory; 0 for predicates.
    pub fn size(self) -> usize {
        match self {
            Type::Pred => 0,
            Type::Bits(n) | Type::Unsigned(n) | Type::Signed(n) => n as usize,
            Type::F16 | Type::Bf16 | Type::E4m3x2 | Type::E5m2x2 => 2,
            Type::F16x2 | Type::Bf16x2 | Type::Tf32 | Type::F32 => 4,
            Type::F64 => 8,
        }
    }
}

/// An operand as it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a variable, a label or a special register
    Name(String),
    /// `!p`
    Not(String),
    /// An integer
    Integer(i128),
    /// `0f…`: the bits of an f32
    F32(u32),
    /// `0d…`: the bits of an f64
    F64(u64),
    /// `[base + offset]`; no base for an absolute address
    Address(Option<String>, i64),
    /// `{a, b, …}`
    Vector(Vec<Operand>),
    /// `(a, b, …)`: arguments of a call
    List(Vec<Operand>),
    /// `a|b`
    Pair(String, String),
}

/// An instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// `@p` or `@!p`: the predicate and whether it is negated
    pub guard: Option<(String, bool)>,
    /// The opcode and its modifiers, apart
    pub opcode: Vec<String>,
    /// What follows, in order
    pub operands: Vec<Operand>,
    /// The line in the PTX text, from 1
    pub line: u32,
    /// The source's file and line of the last `.loc`
    pub location: Option<(u32, u32)>,
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |parts: &[Operand]| parts.iter().map(Operand::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Operand::Name(name) => f.write_str(name),
            Operand::Not(name) => write!(f, "!{name}"),
            Operand::Integer(value) => write!(f, "{value}"),
            Operand::F32(bits) => write!(f, "0f{bits:08X}"),
            Operand::F64(bits) => write!(f, "0d{bits:016X}"),
            Operand::Address(None, offset) => write!(f, "[{offset}]"),
            Operand::Address(Some(base), 0) => write!(f, "[{base}]"),
            Operand::Address(Some(base), offset) => write!(f, "[{base}+{offset}]"),
            Operand::Vector(parts) => write!(f, "{{{}}}", list(parts)),
            Operand::List(parts) => write!(f, "({})", list(parts)),
            Operand::Pair(a, b) => write!(f, "{a}|{b}"),
        }
    }
}

impl std::fmt::Display for Instruction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((p, negated)) = &self.guard {
            write!(f, "@{}{p} ", if *negated { "!" } else { "" })?;
        }
        f.write_str(&self.opcode.join("."))?;
        for (i, operand) in self.operands.iter().enumerate() {
            write!(f, "{}{operand}", if i == 0 { " " } else { ", " })?;
        }
        Ok(())
    }
}

/// A variable: in memory, or a parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Its state space
    pub space: Space,
    /// Its element type
    pub element: Type,
    /// Its name
    pub name: String,
    /// Alignment in bytes
    pub align: usize,
    /// Size in bytes; 0 for `.extern .shared` arrays without a size
    pub size: usize,
    /// Initial bytes; empty for none. Names are addresses to fill in.
    pub initial: Vec<Initial>,
}

/// A piece of an initialiser.
#[derive(Debug, Clone, PartialEq)]
pub enum Initial {
    /// These bytes
    Bytes(Vec<u8>),
    /// The 8-byte address of a variable or function, plus an offset
    Address(String, i64),
}

/// A statement of a body.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// A label
    Label(String),
    /// An instruction
    Instruction(Instruction),
    /// `.reg`: a type and names; `<n>` ranges as a prefix and a count
    Registers(Type, Vec<(String, Option<u32>)>),
    /// A variable of the body
    Variable(Variable),
    /// `{ … }`: a scope
    Scope(Vec<Statement>),
}

/// A function or kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Its name
    pub name: String,
    /// `.entry`
    pub entry: bool,
    /// What it returns
    pub results: Vec<Variable>,
    /// What it takes
    pub parameters: Vec<Variable>,
    /// `.maxntid`, `.reqntid` and the like: name and numbers
    pub directives: Vec<(String, Vec<u64>)>,
    /// Its statements; none for a declaration
    pub body: Option<Vec<Statement>>,
}

/// A module.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Source {
    /// Functions and kernels
    pub functions: Vec<Function>,
    /// Variables of the module
    pub variables: Vec<Variable>,
    /// `.file` numbers and names
    pub files: Vec<(u32, String)>,
    /// `.target`'s first word
    pub target: String,
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'t> {
    /// A name, a directive with its dot, an opcode with its modifiers, or a number
    Word(&'t str),
    Text(&'t str),
    Mark(char),
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: u32,
}

impl<'t> Lexer<'t> {
    fn next(&mut self) -> Result<Option<(Token<'t>, u32)>> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(self.at) {
                None | Some(0) => return Ok(None),
                Some(b'\n') => {
                    self.line += 1;
                    self.at += 1;
                }
                Some(b) if b.is_ascii_whitespace() => self.at += 1,
                Some(b'/') if bytes.get(self.at + 1) == Some(&b'/') => {
                    while bytes.get(self.at).is_some_and(|&b| b != b'\n' && b != 0) {
                        self.at += 1;
                    }
                }
                Some(b'/') if bytes.get(self.at + 1) == Some(&b'*') => {
                    let rest = &self.text[self.at..];
                    let Some(end) = rest.find("*/") else {
                        return Err(Error::syntax(self.line, "unclosed comment"));
                    };
                    self.line += rest[..end].matches('\n').count() as u32;
                    self.at += end + 2;
                }
                Some(b'"') => {
                    let rest = &self.text[self.at + 1..];
                    let Some(end) = rest.find('"') else {
                        return Err(Error::syntax(self.line, "unclosed string"));
                    };
                    self.at += end + 2;
                    return Ok(Some((Token::Text(&rest[..end]), self.line)));
                }
                Some(&b) => {
                    let word =
                        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.' | b':') || b >= 0x80;
                    let start = self.at;
                    if word(b) && b != b':' {
                        self.at += 1;
                        while let Some(&b) = bytes.get(self.at) {
                            // `a::b` is part of a modifier; a lone colon ends a label.
                            let colons =
                                b == b':' && (bytes.get(self.at + 1) == Some(&b':') || bytes[self.at - 1] == b':');
                            if !word(b) || (b == b':' && !colons) {
                                break;
                            }
                            self.at += 1;
                        }
                        return Ok(Some((Token::Word(&self.text[start..self.at]), self.line)));
                    }
                    if !b.is_ascii() {
                        return Err(Error::syntax(self.line, "a character outside ASCII"));
                    }
                    self.at += 1;
                    return Ok(Some((Token::Mark(b as char), self.line)));
                }
            }
        }
    }
}

struct Parser<'t> {
    tokens: Vec<(Token<'t>, u32)>,
    at: usize,
    location: Option<(u32, u32)>,
    /// Nesting of scopes, operands and initialisers
    depth: usize,
}

/// Deepest nesting: recursion must not reach the end of the stack.
const MOST_NESTED: usize = 128;
/// Most elements of a variable.
const MOST_ELEMENTS: usize = 1 << 40;

/// Parses a module.
///
/// # Errors
/// Text that is not PTX, with its line.
pub fn parse(text: &str) -> Result<Source> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Parser { tokens, at: 0, location: None, depth: 0 }.module()
}

impl<'t> Parser<'t> {
    fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |(_, line)| *line)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::syntax(self.line(), message))
    }

    fn peek(&self) -> Option<&Token<'t>> {
        self.tokens.get(self.at).map(|(token, _)| token)
    }

    fn bump(&mut self) -> Option<Token<'t>> {
        let token = self.tokens.get(self.at).map(|(token, _)| token.clone());
        self.at += 1;
        token
    }

    fn is(&self, mark: char) -> bool {
        self.peek() == Some(&Token::Mark(mark))
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.is(mark);
        self.at += usize::from(found);
        found
    }

    /// Runs `parse` a level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MOST_NESTED {
            return self.error(format!("more than {MOST_NESTED} levels of nesting"));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) { Ok(()) } else { self.error(format!("`{mark}` expected, {} found", self.found())) }
    }

    fn found(&self) -> String {
        match self.peek() {
            None => "the end".into(),
            Some(Token::Word(word)) => format!("`{word}`"),
            Some(Token::Text(text)) => format!("\"{text}\""),
            Some(Token::Mark(mark)) => format!("`{mark}`"),
        }
    }

    fn word(&mut self) -> Result<&'t str> {
        match self.peek() {
            Some(&Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.error(format!("a name expected, {} found", self.found())),
        }
    }

    fn accept_word(&mut self, expected: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Word(word)) if *word == expected);
        self.at += usize::from(found);
        found
    }

    fn integer(&mut self) -> Result<i128> {
        let negative = self.accept('-');
        let word = self.word()?;
        match number(word) {
            Some(Operand::Integer(value)) => Ok(if negative { -value } else { value }),
            _ => self.error(format!("an integer expected, `{word}` found")),
        }
    }

    fn skip_statement(&mut self) {
        while !self.accept(';') && self.bump().is_some() {}
    }

    fn module(mut self) -> Result<Source> {
        let mut source = Source::default();
        while let Some(token) = self.peek().cloned() {
            let Token::Word(word) = token else {
                return self.error(format!("a directive expected, {} found", self.found()));
            };
            match word {
                ".version" | ".address_size" => {
                    self.at += 2;
                }
                ".target" => {
                    self.at += 1;
                    source.target = self.word()?.to_string();
                    while self.accept(',') {
                        self.word()?;
                    }
                }
                ".file" => {
                    self.at += 1;
                    let index = self.integer()? as u32;
                    if let Some(Token::Text(name)) = self.bump() {
                        source.files.push((index, name.to_string()));
                    }
                    while self.accept(',') {
                        self.integer()?;
                    }
                }
                ".section" => while !self.accept('}') && self.bump().is_some() {},
                ".visible" | ".extern" | ".weak" | ".common" | ".alias" => self.at += 1,
                ".entry" | ".func" => {
                    let function = self.function()?;
                    source.functions.push(function);
                }
                ".global" | ".const" | ".shared" => {
                    let variables = self.variables()?;
                    self.expect(';')?;
                    source.variables.extend(variables);
                }
                ".pragma" => self.skip_statement(),
                other => return self.error(format!("unknown directive `{other}`")),
            }
        }
        Ok(source)
    }

    fn function(&mut self) -> Result<Function> {
        let entry = self.word()? == ".entry";
        let results = if self.is('(') { self.parameters()? } else { Vec::new() };
        let name = self.word()?.to_string();
        let parameters = if self.is('(') { self.parameters()? } else { Vec::new() };
        let mut directives = Vec::new();
        while let Some(&Token::Word(directive)) = self.peek() {
            self.at += 1;
            let mut numbers = Vec::new();
            while matches!(self.peek(), Some(Token::Word(word)) if word.as_bytes()[0].is_ascii_digit()) {
                numbers.push(self.integer()? as u64);
                self.accept(',');
            }
            directives.push((directive.to_string(), numbers));
        }
        if self.accept(';') {
            return Ok(Function { name, entry, results, parameters, directives, body: None });
        }
        self.location = None;
        let body = Some(self.body()?);
        Ok(Function { name, entry, results, parameters, directives, body })
    }

    fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        let mut parameters = Vec::new();
        while !self.accept(')') {
            parameters.extend(self.variables()?);
            self.accept(',');
        }
        Ok(parameters)
    }

    /// `.space .align n .vN .type name[n] = {…}, name …`
    fn variables(&mut self) -> Result<Vec<Variable>> {
        let space = match self.word()? {
            ".param" => Space::Param,
            ".shared" => Space::Shared,
            ".global" => Space::Global,
            ".const" => Space::Const,
            ".local" => Space::Local,
            ".reg" => Space::Reg,
            other => return self.error(format!("a state space expected, `{other}` found")),
        };
        let (mut align, mut lanes) = (0, 1usize);
        let element = loop {
            let word = self.word()?;
            match word {
                ".align" => align = self.integer()? as usize,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                // What a pointer parameter points to: not needed to run.
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                _ => match word.strip_prefix('.').and_then(Type::parse) {
                    Some(element) => break element,
                    None => return self.error(format!("a type expected, `{word}` found")),
                },
            }
        };
        while matches!(self.peek(), Some(Token::Word(".ptr" | ".global" | ".shared" | ".const" | ".local"))) {
            self.at += 1;
        }
        if self.accept_word(".align") {
            self.integer()?; // the pointee's
        }
        let mut variables = Vec::new();
        loop {
            let name = self.word()?.to_string();
            let mut count = lanes;
            let mut unsized_array = false;
            while self.accept('[') {
                if self.accept(']') {
                    unsized_array = true;
                } else {
                    let size = usize::try_from(self.integer()?).ok().and_then(|size| count.checked_mul(size));
                    count = match size {
                        Some(count) if count <= MOST_ELEMENTS => count,
                        _ => return self.error(format!("{name} has a size that no memory holds")),
                    };
                    self.expect(']')?;
                }
            }
            let mut initial = Vec::new();
            if self.accept('=') {
                self.initial(element, &mut initial)?;
            }
            let size = if unsized_array { 0 } else { count * element.size() };
            let align = align.max(element.size() * lanes).max(1);
            variables.push(Variable { space, element, name, align, size, initial });
            // In a parameter list the comma leads to the next parameter's own space.
            if space == Space::Param || !self.accept(',') {
                return Ok(variables);
            }
        }
    }

    fn initial(&mut self, element: Type, out: &mut Vec<Initial>) -> Result<()> {
        if self.accept('{') {
            while !self.accept('}') {
                self.nested(|parser| parser.initial(element, out))?;
                self.accept(',');
            }
            return Ok(());
        }
        let negative = self.accept('-');
        let word = self.word()?;
        if word == "generic" {
            self.expect('(')?;
            let name = self.word()?.to_string();
            self.expect(')')?;
            let offset = if self.accept('+') { self.integer()? as i64 } else { 0 };
            out.push(Initial::Address(name, offset));
            return Ok(());
        }
        let bytes = match number(word) {
            Some(Operand::Integer(value)) => {
                let value = if negative { -value } else { value };
                value.to_le_bytes()[..element.size()].to_vec()
            }
            Some(Operand::F32(bits)) if element.size() == 4 => bits.to_le_bytes().to_vec(),
            Some(Operand::F32(bits)) => f64::from(f32::from_bits(bits)).to_le_bytes().to_vec(),
            Some(Operand::F64(bits)) if element.size() == 8 => bits.to_le_bytes().to_vec(),
            Some(Operand::F64(bits)) => (f64::from_bits(bits) as f32).to_le_bytes().to_vec(),
            _ => {
                let offset = if self.accept('+') { self.integer()? as i64 } else { 0 };
                out.push(Initial::Address(word.to_string(), offset));
                return Ok(());
            }
        };
        out.push(Initial::Bytes(bytes));
        Ok(())
    }

    fn body(&mut self) -> Result<Vec<Statement>> {
        self.expect('{')?;
        let mut body = Vec::new();
        while !self.accept('}') {
            match self.peek().cloned() {
                None => return self.error("a body without its `}`"),
                Some(Token::Mark('{')) => body.push(Statement::Scope(self.nested(Self::body)?)),
                Some(Token::Mark(';')) => self.at += 1,
                Some(Token::Mark('@')) => body.push(Statement::Instruction(self.instruction()?)),
                Some(Token::Word(word)) => match word {
                    ".loc" => self.loc()?,
                    ".pragma" => self.skip_statement(),
                    _ if word == ".reg" || word.starts_with(".reg.") => body.push(self.registers()?),
                    ".param" | ".local" | ".shared" | ".global" | ".const" => {
                        let variables = self.variables()?;
                        self.expect(';')?;
                        body.extend(variables.into_iter().map(Statement::Variable));
                    }
                    ".branchtargets" | ".calltargets" | ".callprototype" => self.skip_statement(),
                    _ if self.tokens.get(self.at + 1).is_some_and(|(t, _)| *t == Token::Mark(':')) => {
                        self.at += 2;
                        body.push(Statement::Label(word.to_string()));
                    }
                    _ if word.starts_with('.') => {
                        return self.error(format!("unknown directive `{word}`"));
                    }
                    _ => body.push(Statement::Instruction(self.instruction()?)),
                },
                Some(_) => {
                    return self.error(format!("a statement expected, {} found", self.found()));
                }
            }
        }
        Ok(body)
    }

    fn loc(&mut self) -> Result<()> {
        self.at += 1;
        let file = self.integer()? as u32;
        let line = self.integer()? as u32;
        self.integer()?;
        if self.accept(',') {
            // `function_name LABEL, inlined_at file line column`: where the inlined code was called tells its user more than a line of a header.
            while !matches!(self.peek(), Some(Token::Word("inlined_at")) | None) {
                self.at += 1;
            }
            self.at += 1;
            let (file, line) = (self.integer()? as u32, self.integer()? as u32);
            self.integer()?;
            self.location = Some((file, line));
            return Ok(());
        }
        self.location = Some((file, line));
        Ok(())
    }

    fn registers(&mut self) -> Result<Statement> {
        // `.reg .b32`, and `.reg.b32` in inline assembly
        let word = match self.word()? {
            ".reg" => self.word()?,
            joined => &joined[".reg".len()..],
        };
        let Some(element) = word.strip_prefix('.').and_then(Type::parse) else {
            return self.error(format!("a register type expected, `{word}` found"));
        };
        let mut names = Vec::new();
        loop {
            let name = self.word()?.to_string();
            let count = if self.accept('<') {
                let count = self.integer()? as u32;
                self.expect('>')?;
                Some(count)
            } else {
                None
            };
            names.push((name, count));
            if !self.accept(',') {
                break;
            }
        }
        self.expect(';')?;
        Ok(Statement::Registers(element, names))
    }

    fn instruction(&mut self) -> Result<Instruction> {
        let line = self.line();
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            Some((self.word()?.to_string(), negated))
        } else {
            None
        };
        let opcode = self.word()?.split('.').map(str::to_string).collect();
        let mut operands = Vec::new();
        while !self.accept(';') {
            operands.push(self.operand()?);
            self.accept(',');
        }
        Ok(Instruction { guard, opcode, operands, line, location: self.location })
    }

    fn operand(&mut self) -> Result<Operand> {
        match self.peek().cloned() {
            Some(Token::Mark('[')) => {
                self.at += 1;
                let mut base = None;
                let mut offset = 0;
                if let Some(&Token::Word(word)) = self.peek()
                    && number(word).is_none()
                {
                    self.at += 1;
                    base = Some(word.to_string());
                }
                while !self.accept(']') {
                    let _ = self.accept('+');
                    offset = i64::wrapping_add(offset, self.integer()? as i64);
                }
                Ok(Operand::Address(base, offset))
            }
            Some(Token::Mark(open @ ('{' | '('))) => {
                self.at += 1;
                let close = if open == '{' { '}' } else { ')' };
                let mut parts = Vec::new();
                while !self.accept(close) {
                    parts.push(self.nested(Self::operand)?);
                    self.accept(',');
                }
                Ok(if open == '{' { Operand::Vector(parts) } else { Operand::List(parts) })
            }
            Some(Token::Mark('!')) => {
                self.at += 1;
                Ok(Operand::Not(self.word()?.to_string()))
            }
            Some(Token::Mark('-')) => {
                self.at += 1;
                let word = self.word()?;
                match number(word) {
                    Some(Operand::Integer(value)) => Ok(Operand::Integer(-value)),
                    _ => self.error(format!("a number expected after `-`, `{word}` found")),
                }
            }
            Some(Token::Word(word)) => {
                self.at += 1;
                if let Some(number) = number(word) {
                    return Ok(number);
                }
                if self.accept('|') {
                    return Ok(Operand::Pair(word.to_string(), self.word()?.to_string()));
                }
                Ok(Operand::Name(word.to_string()))
            }
            _ => self.error(format!("an operand expected, {} found", self.found())),
        }
    }
}

/// A literal, if the word is one.
fn number(word: &str) -> Option<Operand> {
    if !word.as_bytes()[0].is_ascii_digit() {
        return None;
    }
    if let Some(bits) = word.strip_prefix("0f").or_else(|| word.strip_prefix("0F")) {
        return u32::from_str_radix(bits, 16).ok().map(Operand::F32);
    }
    if let Some(bits) = word.strip_prefix("0d").or_else(|| word.strip_prefix("0D")) {
        return u64::from_str_radix(bits, 16).ok().map(Operand::F64);
    }
    let word = word.strip_suffix('U').unwrap_or(word);
    let (digits, radix) = match word.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&word[2..], 16),
        [b'0', b'b' | b'B', ..] => (&word[2..], 2),
        [b'0', _, ..] if !word.contains('.') => (&word[1..], 8),
        _ => (word, 10),
    };
    if let Ok(value) = i128::from_str_radix(digits, radix) {
        return Some(Operand::Integer(value));
    }
    word.parse::<f64>().ok().map(|value| Operand::F64(value.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(number("0f3F800000"), Some(Operand::F32(0x3f80_0000)));
        assert_eq!(number("0d3FF0000000000000"), Some(Operand::F64(0x3ff0_0000_0000_0000)));
        assert_eq!(number("0x1FU"), Some(Operand::Integer(31)));
        assert_eq!(number("017"), Some(Operand::Integer(15)));
        assert_eq!(number("0"), Some(Operand::Integer(0)));
        assert_eq!(number("%r1"), None);
    }

    #[test]
    fn errors_name_the_line() {
        let error = parse(".version 9.0\n.target sm_80\n.entry f() {\n add.s32 %r1, ;\n").unwrap_err();
        assert_eq!(error.to_string(), "PTX line 4: a body without its `}`");
        let deep = |open: &str| format!(".visible .entry f() {{ {}", open.repeat(100_000));
        for text in [deep("{"), deep("call ("), format!(".global .b32 x[2] = {}", "{".repeat(100_000))] {
            assert!(parse(&text).unwrap_err().to_string().contains("levels of nesting"));
        }
        for size in ["-1", "0x7fffffffffffffff", "4][0x7fffffffffffffff"] {
            let error = parse(&format!(".global .b32 x[{size}];")).unwrap_err();
            assert_eq!(error.to_string(), "PTX line 1: x has a size that no memory holds");
        }
        let error = parse(".bogus 1;").unwrap_err();
        assert_eq!(error.to_string(), "PTX line 1: unknown directive `.bogus`");
        for word in [format!("\"\n{}\"", "x\n".repeat(5000)), format!(".{}", "y".repeat(10_000))] {
            let error = parse(&word).unwrap_err().to_string();
            assert!(!error.contains('\n') && error.chars().count() < 300, "{error}");
        }
    }
}
