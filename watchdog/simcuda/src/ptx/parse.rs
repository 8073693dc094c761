//! Reads the outline of a module: which kernels, functions and variables it has, and where bodies begin and end.

use super::lex::{Cursor, Spot, Token, tokens};
use super::program::{Declared, Function, Kernel, Parameter, Program, Variable};
use super::types::{Type, declared_size};

/// Why a text is not taken as a module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It has no `.version` or no `.target`.
    #[error("the text has no {0}, which every PTX module has")]
    NotPtx(&'static str),
    /// A kernel, function or variable can't be read.
    #[error("byte {place} of the PTX text: a {what} that can't be read")]
    Declaration {
        /// Where.
        place: usize,
        /// What.
        what: &'static str,
    },
}

/// The largest thing that may be declared; more is no mistake of this reader's.
const LARGEST: usize = 1 << 46;

pub(super) fn parse(text: &str) -> Result<Program, Malformed> {
    let tokens = tokens(text);
    for needed in [".version", ".target"] {
        if !tokens.iter().any(|&(_, token)| token == Token::Word(needed)) {
            return Err(Malformed::NotPtx(needed));
        }
    }
    let mut program = Program { text: text.into(), ..Program::default() };
    let (mut cursor, mut declared) = (Cursor::new(&tokens), Vec::new());
    while let Some(place) = cursor.place() {
        let malformed = |what| Malformed::Declaration { place, what };
        let head = cursor.until(|mark| mark == ';' || mark == '{');
        if has(head, ".entry") || has(head, ".func") {
            read_function(&mut program, head, &mut cursor).ok_or_else(|| malformed("kernel or function"))?;
        } else if has(head, ".section") {
            skip_block(&mut cursor).ok_or_else(|| malformed("section"))?;
        } else {
            let initial = cursor.until(|mark| mark == ';');
            cursor.take(';');
            if has(head, ".extern") {
                declared.push((place, head));
                continue;
            }
            read_variables(&mut program, head, initial).ok_or_else(|| malformed("variable"))?;
        }
    }
    // What the text defines as well is known with its size and its value by now.
    for (place, head) in declared {
        let malformed = || Malformed::Declaration { place, what: "variable" };
        read_variables(&mut program, head, &[]).ok_or_else(malformed)?;
    }
    Ok(program)
}

fn has(tokens: &[Spot<'_>], word: &str) -> bool {
    tokens.iter().any(|&(_, token)| token == Token::Word(word))
}

/// A body, or the semicolon of a mere declaration.
fn skip_block(cursor: &mut Cursor<'_, '_>) -> Option<()> {
    if cursor.take('{') { cursor.block().map(|_| ()) } else { cursor.take(';').then_some(()) }
}

fn read_function(program: &mut Program, head: &[Spot<'_>], cursor: &mut Cursor<'_, '_>) -> Option<()> {
    let is_kernel = has(head, ".entry");
    let at = head.iter().position(|&(_, token)| matches!(token, Token::Word(".entry" | ".func")))?;
    let mut function = read_head(&head[at + 1..])?;
    if cursor.take('{') {
        let start = cursor.place()?;
        let end = cursor.block()?;
        function.body = Some(start..end);
    } else if !cursor.take(';') {
        return None;
    }
    if is_kernel && function.body.is_some() {
        program.by_name.insert(function.name.clone(), program.kernels.len());
        program.kernels.push(Kernel::new(function));
    } else if !is_kernel && (function.body.is_some() || !program.functions.contains_key(&function.name)) {
        program.functions.insert(function.name.clone(), function);
    }
    Some(())
}

/// `(results) name (parameters) …`, of which all but the name may be missing.
fn read_head(tokens: &[Spot<'_>]) -> Option<Function> {
    let mut cursor = Cursor::new(tokens);
    while cursor.peek() == Some(Token::Word(".noreturn")) {
        cursor.next();
    }
    let results = read_list(&mut cursor)?;
    let name = cursor.word()?.to_owned();
    let parameters = read_list(&mut cursor)?;
    let mut next = 0_usize;
    let mut places = Vec::new();
    for declared in &parameters {
        let offset = next.checked_next_multiple_of(declared.align)?;
        places.push(Parameter { offset, size: declared.size });
        next = offset.checked_add(declared.size).filter(|&end| end <= LARGEST)?;
    }
    Some(Function { name, results, parameters, places, body: None })
}

/// `( .param …, .param … )`, or nothing.
fn read_list(cursor: &mut Cursor<'_, '_>) -> Option<Vec<Declared>> {
    let mut list = Vec::new();
    if !cursor.take('(') {
        return Some(list);
    }
    loop {
        let one = cursor.until(|mark| mark == ',' || mark == ')');
        if !one.is_empty() {
            list.push(read_declaration(one)?.1);
        }
        if cursor.take(')') {
            return Some(list);
        }
        cursor.take(',').then_some(())?;
    }
}

/// A type, a name, and how many there are: `.align 8 .b8 name[24]`. Also the size of one element.
pub(super) fn read_declaration(tokens: &[Spot<'_>]) -> Option<(usize, Declared)> {
    let mut cursor = Cursor::new(tokens);
    let (mut align, mut lanes) = (None, 1);
    let element = loop {
        match cursor.next()? {
            Token::Word(".align") => align = Some(read_number(&mut cursor)?),
            Token::Word(".v2") => lanes = 2,
            Token::Word(".v4") => lanes = 4,
            Token::Word(word) => {
                if let Some(size) = declared_size(word) {
                    break size;
                }
            }
            _ => return None,
        }
    };
    let element = element * lanes;
    let name = loop {
        // Behind the type of a pointer stands what it points to.
        match cursor.next()? {
            Token::Word(word) if !word.starts_with('.') => break word.to_owned(),
            Token::Word(_) | Token::Number(_) => {}
            _ => return None,
        }
    };
    let mut size = element;
    while cursor.take('[') {
        let length = if cursor.take(']') {
            0
        } else {
            let length = read_number(&mut cursor)?;
            cursor.take(']').then_some(())?;
            length
        };
        size = size.checked_mul(length).filter(|&size| size <= LARGEST)?;
    }
    let align = align.unwrap_or(element).min(1 << 16);
    align.is_power_of_two().then_some((element, Declared { name, size, align }))
}

fn read_number(cursor: &mut Cursor<'_, '_>) -> Option<usize> {
    let Some(Token::Number(digits)) = cursor.next() else { return None };
    usize::try_from(integer(digits)?).ok()
}

/// An integer as PTX writes it: decimal, `0x`, `0b`, or octal behind a zero; `U` may stand behind it.
pub(super) fn integer(digits: &str) -> Option<u64> {
    let digits = digits.trim_end_matches(['U', 'u']);
    let (rest, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    u64::from_str_radix(rest, radix).ok()
}

/// A floating-point number as PTX writes it: by its bits (`0f` for single, `0d` for double), or decimal.
pub(super) fn float(digits: &str) -> Option<f64> {
    match digits.as_bytes() {
        [b'0', b'f' | b'F', ..] => {
            u32::from_str_radix(&digits[2..], 16).ok().map(|bits| f32::from_bits(bits).into())
        }
        [b'0', b'd' | b'D', ..] => u64::from_str_radix(&digits[2..], 16).ok().map(f64::from_bits),
        _ => digits.parse().ok(),
    }
}

/// A statement outside of functions; those that declare no variable are passed over.
fn read_variables(program: &mut Program, head: &[Spot<'_>], rest: &[Spot<'_>]) -> Option<()> {
    let space =
        head.iter().position(|&(_, token)| matches!(token, Token::Word(".global" | ".const" | ".shared")));
    let Some(space) = space else { return Some(()) };
    let is_shared = head[space].1 == Token::Word(".shared");
    let equals = head.iter().position(|&(_, token)| token == Token::Mark('='));
    let declaration = &head[space + 1..equals.unwrap_or(head.len())];
    let (_, declared) = read_declaration(declaration)?;
    if is_shared {
        program.shared.push(declared);
        return Some(());
    }
    let mut variable = Variable { name: declared.name, size: declared.size as u64, ..Variable::default() };
    let kind = declaration.iter().find_map(|&(_, token)| match token {
        Token::Word(word) => Type::named(word.strip_prefix('.')?),
        _ => None,
    });
    let values = equals.map_or(&[][..], |at| &head[at + 1..]);
    // What stands in braces or alone behind the sign: the braces of nested arrays say nothing new.
    if kind.is_none_or(|kind| read_values(&mut variable, kind, values, rest).is_none()) && equals.is_some() {
        variable.initial = None;
    }
    if !has(head, ".extern") || program.variable(&variable.name).is_none() {
        program.variables.push(variable);
    }
    Some(())
}

/// Fills in the initial value; none if there is something in it that is not understood.
fn read_values(variable: &mut Variable, kind: Type, head: &[Spot<'_>], rest: &[Spot<'_>]) -> Option<()> {
    let mut bytes = Vec::new();
    let all: Vec<Spot<'_>> = head.iter().chain(rest).copied().collect();
    let mut cursor = Cursor::new(&all);
    while let Some(token) = cursor.next() {
        let negative = token == Token::Mark('-');
        match if negative { cursor.next()? } else { token } {
            Token::Mark('{' | '}' | ',') => {}
            Token::Number(digits) => {
                let bits = number_bits(digits, kind, negative)?;
                bytes.extend_from_slice(bits.to_le_bytes().get(..kind.size())?);
            }
            Token::Word(name) if kind.size() == 8 => {
                let generic = name == "generic";
                let name = if generic && cursor.take('(') { cursor.word()? } else { name };
                if generic {
                    cursor.take(')').then_some(())?;
                }
                let added = if cursor.take('+') { read_number(&mut cursor)? } else { 0 };
                let added = i64::try_from(added).ok()?;
                variable.references.push((bytes.len() as u64, name.into(), added));
                bytes.extend([0; 8]);
            }
            _ => return None,
        }
    }
    // An array without a length is as long as what it begins with.
    variable.size = variable.size.max(bytes.len() as u64);
    variable.initial = Some(bytes);
    Some(())
}

/// The bits of a number of a type.
#[allow(clippy::cast_possible_truncation)] // Single precision is what is asked for.
pub(super) fn number_bits(digits: &str, kind: Type, negative: bool) -> Option<u64> {
    if kind.is_float() {
        let value = float(digits)? * if negative { -1.0 } else { 1.0 };
        return Some(match kind {
            Type::F64 => value.to_bits(),
            Type::F32 => (value as f32).to_bits().into(),
            Type::F16 => super::convert::f16_from(value).into(),
            _ => super::convert::bf16_from(value).into(),
        });
    }
    // Bits may be given as a floating-point number, too.
    let value = integer(digits).or_else(|| {
        let value = float(digits)?;
        Some(if kind.size() == 8 { value.to_bits() } else { (value as f32).to_bits().into() })
    })?;
    Some(if negative { value.wrapping_neg() } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "
        // .entry commented_out (
        .version 7.0
        .target sm_70 /* .entry neither ( */
        .address_size 64
        .visible .global .align 4 .b8 table[64];
        .const .f32 pi = 0f40490FDB;
        .global .align 4 .u16 pairs[2][2] = {{1, 2}, {-3, 0x4}};
        .global .u64 place = generic(table)+8;
        .extern .shared .align 16 .b8 dynamic[];
        .extern .func (.param .b32 status) vprintf (.param .b64 a, .param .b64 b);
        .visible .entry mix(
            .param .u32 mix_0,
            .param .u64 .ptr .global .align 16 mix_1,
            .param .align 8 .b8 mix_2[24],
            .param .f32 mix_3
        )
        .maxntid 256, 1, 1
        {
            { ld.global.f32 %f1, [%rd1]; }
            ret;
        }
        .entry bare { ret; }
        .entry empty() { ret; }
        .section .debug_str { .b8 1 }
    ";

    #[test]
    fn kernels_are_found_with_the_place_of_each_parameter() {
        let program = parse(SAMPLE).unwrap();
        let names: Vec<_> = program.kernels().iter().map(Kernel::name).collect();
        assert_eq!(names, ["mix", "bare", "empty"]);
        let places: Vec<_> =
            program.kernel("mix").unwrap().parameters().iter().map(|p| (p.offset, p.size)).collect();
        assert_eq!(places, [(0, 4), (8, 8), (16, 24), (40, 4)]);
        assert!(program.kernels()[2].parameters().is_empty());
        let body = program.kernels()[0].function.body.clone().unwrap();
        assert!(program.text[body].trim_end().ends_with("ret;"));
        assert!(program.functions["vprintf"].body.is_none());
    }

    #[test]
    fn variables_are_found_with_their_size_and_first_value() {
        let program = parse(SAMPLE).unwrap();
        let sizes: Vec<_> = program.variables().iter().map(|v| (v.name.as_str(), v.size)).collect();
        assert_eq!(sizes, [("table", 64), ("pi", 4), ("pairs", 8), ("place", 8)]);
        let initial = |name| program.variable(name).unwrap().initial.clone().unwrap();
        assert!(initial("table").is_empty());
        assert_eq!(initial("pi"), std::f32::consts::PI.to_le_bytes());
        assert_eq!(initial("pairs"), [1, 0, 2, 0, 0xfd, 0xff, 4, 0]);
        assert_eq!(program.variable("place").unwrap().references, [(0, "table".into(), 8)]);
        assert_eq!(program.shared[0].size, 0);
    }

    #[test]
    fn a_variable_that_is_declared_and_defined_is_the_one_that_is_defined() {
        let text = ".version 7.0\n.target sm_70\n.extern .global .u32 a[];\n.extern .const .u32 b[2];\n.global .u32 a[3] = {7};";
        let program = parse(text).unwrap();
        let sizes: Vec<_> = program.variables().iter().map(|v| (v.name.as_str(), v.size)).collect();
        assert_eq!(sizes, [("a", 12), ("b", 8)]);
    }

    #[test]
    fn what_is_no_ptx_is_refused() {
        assert_eq!(parse("hello").unwrap_err(), Malformed::NotPtx(".version"));
        assert!(parse("").is_err());
        assert!(parse(".version 7.0\n.target sm_70\n.entry k( { ret; }").is_err());
        assert!(parse(".version 7.0\n.target sm_70\n.entry k() { ret;").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(body in "[.a-z0-9 ,;(){}\\[\\]/*\n]{0,120}") {
            let _ = parse(&format!(".version 7.0\n.target sm_70\n.entry k({body}"));
            let _ = parse(&format!(".version 7.0\n.target sm_70\n.global .b8 {body}"));
        }
    }
}
