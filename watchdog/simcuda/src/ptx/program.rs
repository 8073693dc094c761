//! A module in text form: its kernels, functions and variables. Bodies are read when they are first needed.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::OnceLock;

use super::compile::{Code, compile};
use super::parse::{Malformed, parse};

/// Where the addresses of functions begin.
const FUNCTIONS: u64 = 1 << 62;

/// A parameter of a kernel or a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Bytes from the start of all parameters.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// Why a kernel is not computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not interpreted")]
pub struct Unsupported(pub String);

/// A kernel.
#[derive(Debug)]
pub struct Kernel {
    pub(super) function: Function,
    code: OnceLock<Result<Code, Unsupported>>,
}

impl Kernel {
    pub(super) fn new(function: Function) -> Self {
        Self { function, code: OnceLock::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.function.name
    }

    /// Its parameters, in their order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.function.places
    }
}

/// A kernel or a device function.
#[derive(Clone, Debug, Default)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) results: Vec<Declared>,
    pub(super) parameters: Vec<Declared>,
    pub(super) places: Vec<Parameter>,
    /// Where its body lies in the text, without the braces; none for a declaration.
    pub(super) body: Option<Range<usize>>,
}

/// A name with a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) name: String,
    pub(super) size: usize,
    pub(super) align: usize,
}

/// A variable of a module in the device's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What it begins with; the rest is zero. None: its initial value is not understood.
    pub initial: Option<Vec<u8>>,
    /// Addresses of other variables in it: where, whose, and what is added.
    pub references: Vec<(u64, String, i64)>,
}

/// A module in text form.
#[derive(Debug, Default)]
pub struct Program {
    pub(super) text: String,
    pub(super) kernels: Vec<Kernel>,
    pub(super) by_name: HashMap<String, usize>,
    pub(super) functions: HashMap<String, Function>,
    pub(super) variables: Vec<Variable>,
    /// Shared variables of the module: a size of zero means as much as the launch gives.
    pub(super) shared: Vec<Declared>,
}

impl Program {
    /// Reads the heads of all that is in a module. What bodies hold is looked at later.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        parse(text)
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel of this name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.by_name.get(name).map(|&index| &self.kernels[index])
    }

    /// The variables in the device's memory, constants included.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
    }

    /// The variable of this name.
    pub fn variable(&self, name: &str) -> Option<&Variable> {
        self.variables.iter().find(|variable| variable.name == name)
    }

    /// The address of a function that has a body. There is no memory there: it can only be called.
    pub fn function_address(&self, name: &str) -> Option<u64> {
        let body = self.functions.get(name)?.body.as_ref()?;
        Some(FUNCTIONS + body.start as u64)
    }

    /// Functions whose addresses lie in variables.
    pub(super) fn referenced_functions(&self) -> impl Iterator<Item = &str> {
        let names = self.variables.iter().flat_map(|variable| &variable.references);
        names.map(|(_, name, _)| name.as_str()).filter(|name| self.function_address(name).is_some())
    }

    /// What `kernel`, which has to be one of this module, does.
    pub fn code<'a>(&self, kernel: &'a Kernel) -> Result<&'a Code, &'a Unsupported> {
        kernel.code.get_or_init(|| compile(self, &kernel.function)).as_ref()
    }
}
