//! Turns the bodies of a kernel and of the functions that it calls into one list of instructions.
//!
//! Functions have their registers and their local memory to themselves, since none may call itself: a call copies
//! arguments and jumps.

use std::collections::HashMap;

use super::instruction::{FIRST, Guard, Instruction, Op, Register};
use super::lex::{Cursor, Spot, Token, tokens};
use super::parse::read_declaration;
use super::program::{Declared, Function, Program, Unsupported};
use super::scope::{Name, Scopes};

/// Limits of what one thread and one block may have; more is left alone.
const MOST_REGISTERS: u32 = 8192;
const MOST_LOCAL: usize = 128 << 10;
const MOST_SHARED: usize = 228 << 10;

/// A kernel that can be run.
#[derive(Debug, Default)]
pub struct Code {
    pub(super) instructions: Vec<Instruction>,
    pub(super) registers: usize,
    /// Bytes of local memory of a thread.
    pub(super) local: usize,
    /// Bytes of shared memory of a block, beside what the launch adds.
    pub(super) shared: usize,
    /// Functions that are called: no deeper can calls go.
    pub(super) functions: usize,
    /// Those of them by their addresses.
    pub(super) entries: HashMap<u64, Entry>,
    /// The variables that it uses.
    variables: Vec<String>,
    is_empty: bool,
}

impl Code {
    /// Names of the module's variables that it uses, in the order in which a launch has to give their addresses.
    pub fn variables(&self) -> &[String] {
        &self.variables
    }

    /// Whether it does nothing but return.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }
}

pub(super) type Result<T = ()> = std::result::Result<T, Unsupported>;

pub(super) fn unsupported<T>(what: impl Into<String>) -> Result<T> {
    Err(Unsupported(what.into()))
}

/// Where a function's parameters and results lie in local memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Frame {
    pub(super) results: Vec<(u64, usize)>,
    pub(super) parameters: Vec<(u64, usize)>,
}

/// Where a function begins, and what it expects.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) start: u32,
    pub(super) frame: Frame,
}

/// What is known while a kernel is compiled.
#[derive(Debug)]
pub(super) struct Compiler<'p> {
    pub(super) program: &'p Program,
    pub(super) code: Code,
    pub(super) registers: Register,
    shared: HashMap<&'p str, u64>,
    frames: HashMap<&'p str, Frame>,
    /// Functions that are called, in the order in which they are compiled.
    called: Vec<&'p str>,
    /// Calls whose target is to be filled in: instruction and place in `called`.
    pub(super) calls: Vec<(usize, usize)>,
}

pub(super) fn compile(program: &Program, kernel: &Function) -> Result<Code> {
    let mut compiler = Compiler {
        program,
        code: Code::default(),
        registers: FIRST,
        shared: HashMap::new(),
        frames: HashMap::new(),
        called: Vec::new(),
        calls: Vec::new(),
    };
    compiler.body(kernel, true)?;
    let mut starts = Vec::new();
    while let Some(&name) = compiler.called.get(starts.len()) {
        starts.push(u32::try_from(compiler.code.instructions.len()).unwrap_or(u32::MAX));
        let function = program.functions.get(name).ok_or_else(|| Unsupported(format!("call of {name}")))?;
        compiler.enter(function)?;
        compiler.body(function, false)?;
    }
    for &(instruction, function) in &compiler.calls {
        compiler.code.instructions[instruction].op = Op::Call { target: starts[function] };
    }
    let mut code = compiler.code;
    code.registers = compiler.registers as usize;
    code.functions = starts.len();
    code.is_empty = code.instructions.iter().all(|one| matches!(one.op, Op::Exit | Op::Nothing));
    Ok(code)
}

impl<'p> Compiler<'p> {
    fn body(&mut self, function: &'p Function, is_kernel: bool) -> Result {
        let range = function.body.clone().ok_or_else(|| Unsupported(format!("call of {}", function.name)))?;
        let program = self.program;
        let tokens = tokens(&program.text[range]);
        let start = self.code.instructions.len();
        let mut body = Body::new(self, is_kernel, start);
        body.declare_parameters(function)?;
        body.statements(&mut Cursor::new(&tokens))?;
        body.emit(None, if is_kernel { Op::Exit } else { Op::Return });
        body.fill_in_labels()
    }

    /// Notes where a function begins whose body comes next.
    fn enter(&mut self, function: &'p Function) -> Result {
        let frame = self.frame(function)?;
        let start = u32::try_from(self.code.instructions.len()).unwrap_or(u32::MAX);
        let address = self.program.function_address(&function.name).unwrap_or_default();
        self.code.entries.insert(address, Entry { start, frame });
        Ok(())
    }

    /// The address of a function, which may be called by it from now on.
    pub(super) fn function_address(&mut self, name: &str) -> Option<u64> {
        let program = self.program;
        let (name, _) = program.functions.get_key_value(name)?;
        let address = program.function_address(name)?;
        self.called(name);
        Some(address)
    }

    /// A fresh register.
    pub(super) fn register(&mut self) -> Result<Register> {
        if self.registers >= MOST_REGISTERS {
            return unsupported(format!("a kernel with more than {MOST_REGISTERS} registers"));
        }
        self.registers += 1;
        Ok(self.registers - 1)
    }

    /// Takes local memory for a variable.
    pub(super) fn local(&mut self, size: usize, align: usize) -> Result<u64> {
        let place = self.code.local.next_multiple_of(align.clamp(1, 256));
        let end = place.saturating_add(size);
        if end > MOST_LOCAL {
            return unsupported(format!("more than {MOST_LOCAL} bytes of local memory"));
        }
        self.code.local = end;
        Ok(place as u64)
    }

    /// Takes shared memory for a variable.
    pub(super) fn shared(&mut self, size: usize, align: usize) -> Result<u64> {
        let place = self.code.shared.next_multiple_of(align.clamp(1, 1024));
        let end = place.saturating_add(size);
        if end > MOST_SHARED {
            return unsupported(format!("more than {MOST_SHARED} bytes of shared memory"));
        }
        self.code.shared = end;
        Ok(place as u64)
    }

    /// The place of a shared variable of the module.
    pub(super) fn module_shared(&mut self, name: &str) -> Result<Option<Name>> {
        let program = self.program;
        let Some(declared) = program.shared.iter().find(|declared| declared.name == name) else {
            return Ok(None);
        };
        if declared.size == 0 {
            return Ok(Some(Name::Dynamic));
        }
        if let Some(&place) = self.shared.get(declared.name.as_str()) {
            return Ok(Some(Name::Shared(place)));
        }
        let place = self.shared(declared.size, declared.align)?;
        self.shared.insert(&declared.name, place);
        Ok(Some(Name::Shared(place)))
    }

    /// The number of a variable of the module among those that the kernel uses.
    pub(super) fn variable(&mut self, name: &str) -> Result<Option<u32>> {
        let Some(variable) = self.program.variable(name) else { return Ok(None) };
        let program = self.program;
        let is_known =
            |name: &str| program.variable(name).is_some() || program.function_address(name).is_some();
        let points_nowhere = variable.references.iter().any(|(_, other, _)| !is_known(other));
        if variable.initial.is_none() || points_nowhere {
            return unsupported(format!("the initial value of {name}"));
        }
        let known = self.code.variables.iter().position(|used| used == name);
        let index = known.unwrap_or_else(|| {
            self.code.variables.push(name.into());
            self.code.variables.len() - 1
        });
        Ok(u32::try_from(index).ok())
    }

    /// Where a function's parameters and results lie.
    pub(super) fn frame(&mut self, function: &'p Function) -> Result<Frame> {
        if let Some(frame) = self.frames.get(function.name.as_str()) {
            return Ok(frame.clone());
        }
        let mut places = |declared: &[Declared]| {
            let place = |one: &Declared| Ok((self.local(one.size, one.align)?, one.size));
            declared.iter().map(place).collect::<Result<Vec<_>>>()
        };
        let frame = Frame { results: places(&function.results)?, parameters: places(&function.parameters)? };
        self.frames.insert(&function.name, frame.clone());
        Ok(frame)
    }

    /// The place of a function among those that are called.
    pub(super) fn called(&mut self, name: &'p str) -> usize {
        self.called.iter().position(|known| *known == name).unwrap_or_else(|| {
            self.called.push(name);
            self.called.len() - 1
        })
    }
}

/// One body while it is compiled.
#[derive(Debug)]
pub(super) struct Body<'c, 'p, 'a> {
    pub(super) compiler: &'c mut Compiler<'p>,
    pub(super) is_kernel: bool,
    start: usize,
    pub(super) scopes: Scopes<'a>,
    labels: HashMap<&'a str, u32>,
    /// Where each label stands, by its number.
    positions: Vec<Option<u32>>,
    tables: HashMap<&'a str, Vec<u32>>,
    /// Jumps by a table whose targets are to be filled in.
    pub(super) jumps: Vec<(usize, &'a str)>,
}

impl<'c, 'p, 'a> Body<'c, 'p, 'a>
where
    'p: 'a,
{
    fn new(compiler: &'c mut Compiler<'p>, is_kernel: bool, start: usize) -> Self {
        Self {
            compiler,
            is_kernel,
            start,
            scopes: Scopes::new(),
            labels: HashMap::new(),
            positions: Vec::new(),
            tables: HashMap::new(),
            jumps: Vec::new(),
        }
    }

    fn declare_parameters(&mut self, function: &'p Function) -> Result {
        if self.is_kernel {
            for (declared, place) in function.parameters.iter().zip(&function.places) {
                self.scopes.declare(&declared.name, Name::Parameter(place.offset as u64));
            }
            return Ok(());
        }
        let frame = self.compiler.frame(function)?;
        let all = function.results.iter().zip(frame.results);
        for (declared, (place, _)) in all.chain(function.parameters.iter().zip(frame.parameters)) {
            self.scopes.declare(&declared.name, Name::Local(place));
        }
        Ok(())
    }

    pub(super) fn emit(&mut self, guard: Option<Guard>, op: Op) {
        self.compiler.code.instructions.push(Instruction { guard, op });
    }

    /// The number of the next instruction.
    pub(super) fn here(&self) -> usize {
        self.compiler.code.instructions.len()
    }

    pub(super) fn label(&mut self, name: &'a str) -> u32 {
        let next = u32::try_from(self.positions.len()).unwrap_or(u32::MAX);
        let number = *self.labels.entry(name).or_insert(next);
        if number == next {
            self.positions.push(None);
        }
        number
    }

    fn statements(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result {
        while let Some(token) = cursor.peek() {
            match token {
                Token::Mark(';') => {
                    cursor.next();
                }
                Token::Mark('{') => {
                    cursor.next();
                    self.scopes.open();
                }
                Token::Mark('}') => {
                    cursor.next();
                    if !self.scopes.close() {
                        return unsupported("a brace too many");
                    }
                }
                Token::Word(name) if cursor.peek_second() == Some(Token::Mark(':')) => {
                    cursor.next();
                    cursor.next();
                    self.define(name, cursor)?;
                }
                Token::Word(word) if word.starts_with('.') => self.directive(word, cursor)?,
                Token::Word(_) | Token::Mark('@') => self.instruction(cursor)?,
                other => return unsupported(format!("{other:?}")),
            }
        }
        Ok(())
    }

    /// A label, or the name of a table of labels.
    fn define(&mut self, name: &'a str, cursor: &mut Cursor<'_, 'a>) -> Result {
        if matches!(cursor.peek(), Some(Token::Word(".callprototype" | ".calltargets"))) {
            // What an indirect call passes says as much.
            cursor.until(|mark| mark == ';');
            return Ok(());
        }
        if cursor.peek() == Some(Token::Word(".branchtargets")) {
            cursor.next();
            let targets = cursor.until(|mark| mark == ';').iter().filter_map(|&(_, token)| match token {
                Token::Word(target) => Some(target),
                _ => None,
            });
            let targets = targets.map(|target| self.label(target)).collect();
            self.tables.insert(name, targets);
            return Ok(());
        }
        let number = self.label(name) as usize;
        let here = u32::try_from(self.here()).unwrap_or(u32::MAX);
        if self.positions[number].replace(here).is_some() {
            return unsupported(format!("label {name} defined twice"));
        }
        Ok(())
    }

    fn directive(&mut self, word: &str, cursor: &mut Cursor<'_, 'a>) -> Result {
        cursor.next();
        if word == ".loc" {
            skip_location(cursor);
            return Ok(());
        }
        let tokens = cursor.until(|mark| mark == ';');
        match word {
            ".reg" => self.declare_registers(tokens),
            ".local" | ".param" | ".shared" => self.declare_variable(word, tokens),
            ".extern" => match tokens {
                [(_, Token::Word(".shared")), rest @ ..] => self.declare_variable(word, rest),
                _ => unsupported(word),
            },
            ".pragma" | ".callprototype" | ".file" => Ok(()),
            _ => unsupported(word),
        }
    }

    fn declare_variable(&mut self, directive: &str, tokens: &[Spot<'a>]) -> Result {
        let (_, declared) =
            read_declaration(tokens).ok_or_else(|| Unsupported(format!("a {directive} variable")))?;
        // The name as the text has it, which outlives the statement.
        let name = tokens.iter().find_map(|&(_, token)| match token {
            Token::Word(word) if word == declared.name => Some(word),
            _ => None,
        });
        let meaning = match directive {
            ".extern" => Name::Dynamic,
            ".shared" => Name::Shared(self.compiler.shared(declared.size, declared.align)?),
            _ => Name::Local(self.compiler.local(declared.size, declared.align)?),
        };
        if let Some(name) = name {
            self.scopes.declare(name, meaning);
        }
        Ok(())
    }

    /// Single registers get a place now; those of a family (`%r<9>`) when they are first used.
    fn declare_registers(&mut self, tokens: &[Spot<'a>]) -> Result {
        for (index, &(_, token)) in tokens.iter().enumerate() {
            let Token::Word(name) = token else { continue };
            let is_family = tokens.get(index + 1).is_some_and(|&(_, next)| next == Token::Mark('<'));
            if !is_family && !name.starts_with('.') {
                let register = self.compiler.register()?;
                self.scopes.declare(name, Name::Register(register));
            }
        }
        Ok(())
    }

    fn instruction(&mut self, cursor: &mut Cursor<'_, 'a>) -> Result {
        let guard = if cursor.take('@') {
            let negated = cursor.take('!');
            let name = cursor.word().ok_or_else(|| Unsupported("a guard without a register".into()))?;
            Some(Guard { register: self.register(name)?, negated })
        } else {
            None
        };
        let opcode = cursor.word().ok_or_else(|| Unsupported("a guard without an instruction".into()))?;
        let operands = cursor.until(|mark| mark == ';');
        self.decode(guard, opcode, operands)
    }

    /// Replaces the numbers of labels by those of instructions.
    fn fill_in_labels(&mut self) -> Result {
        for (instruction, table) in std::mem::take(&mut self.jumps) {
            let found =
                self.tables.get(table).cloned().ok_or_else(|| Unsupported(format!("table {table}")))?;
            if let Op::BranchIndexed { targets, .. } = &mut self.compiler.code.instructions[instruction].op {
                *targets = found;
            }
        }
        for instruction in &mut self.compiler.code.instructions[self.start..] {
            let targets = match &mut instruction.op {
                Op::Branch { target } => std::slice::from_mut(target),
                Op::BranchIndexed { targets, .. } => targets.as_mut_slice(),
                _ => continue,
            };
            for target in targets {
                let place = self.positions.get(*target as usize).copied().flatten();
                *target = place.ok_or_else(|| Unsupported("a jump to a label that is nowhere".into()))?;
            }
        }
        Ok(())
    }
}

/// `.loc 1 2 3`, or `.loc 1 2 3, function_name label, inlined_at 1 2 3`, which no semicolon ends.
fn skip_location(cursor: &mut Cursor<'_, '_>) {
    let numbers = |cursor: &mut Cursor<'_, '_>| {
        while matches!(cursor.peek(), Some(Token::Number(_))) {
            cursor.next();
        }
    };
    numbers(cursor);
    while cursor.take(',') {
        match cursor.word() {
            Some("function_name") => {
                cursor.word();
                cursor.take('+');
                numbers(cursor);
            }
            _ => numbers(cursor),
        }
    }
}
