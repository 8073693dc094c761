//! What is read of a PTX text: its kernels with their parameters, and its global variables. Pure.

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// Bytes from the start of all parameters.
    pub(super) offset: usize,
    /// Bytes.
    pub(super) size: usize,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) name: String,
    pub(super) parameters: Vec<Parameter>,
}

/// A module in text form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) kernels: Vec<Kernel>,
    /// Global and constant variables: name and size.
    pub(super) variables: Vec<(String, u64)>,
}

/// Reads a PTX text; none if it is not one.
pub(super) fn parse(text: &str) -> Option<Text> {
    let text = without_comments(text);
    if !text.contains(".version") || !text.contains(".target") {
        return None;
    }
    let mut module = Text::default();
    for statement in text.split([';', '{', '}']) {
        if let Some((_, head)) = statement.split_once(".entry") {
            module.kernels.push(parse_kernel(head)?);
        } else if !statement.contains(".func") {
            module.variables.extend(parse_variable(statement));
        }
    }
    Some(module)
}

fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        kept.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes().get(1) {
            Some(b'/') => rest.find('\n'),
            Some(b'*') => rest.find("*/").map(|end| end + 2),
            _ => {
                kept.push('/');
                Some(1)
            }
        };
        rest = end.map_or("", |end| &rest[end..]);
    }
    kept + rest
}

/// `name ( .param …, .param … ) …`
fn parse_kernel(head: &str) -> Option<Kernel> {
    let head = head.trim_start();
    let end = head.find(|c: char| c == '(' || c.is_whitespace()).unwrap_or(head.len());
    let name = head[..end].to_owned();
    if name.is_empty() {
        return None;
    }
    let list = head[end..].trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let mut parameters = Vec::new();
    let mut next = 0_usize;
    for text in list.map_or("", |(inside, _)| inside).split(',').filter(|text| !text.trim().is_empty()) {
        let (size, align) = size_and_alignment(text)?;
        let offset = next.next_multiple_of(align);
        parameters.push(Parameter { offset, size });
        next = offset.checked_add(size)?;
    }
    Some(Kernel { name, parameters })
}

/// `.visible .global .align 4 .b8 name[64] = …`
fn parse_variable(statement: &str) -> Option<(String, u64)> {
    let declaration = statement.split('=').next()?;
    if !declaration.split_whitespace().any(|word| word == ".global" || word == ".const") {
        return None;
    }
    let (size, _) = size_and_alignment(declaration)?;
    let name = declaration.split_whitespace().last()?.split('[').next()?;
    Some((name.into(), size as u64))
}

/// Size and alignment of a declared thing: its type, times the length if it is an array.
fn size_and_alignment(text: &str) -> Option<(usize, usize)> {
    let mut align = None;
    let mut words = text.split_whitespace();
    let element = loop {
        let word = words.next()?;
        if word == ".align" {
            align = words.next()?.parse().ok().filter(|&n: &usize| n.is_power_of_two());
        } else if let Some(size) = type_size(word) {
            break size;
        }
    };
    let lengths = text.split('[').skip(1).map(|rest| rest.split(']').next()?.trim().parse::<usize>().ok());
    let count = lengths.map(|length| length.unwrap_or(0)).try_fold(1_usize, usize::checked_mul)?;
    Some((element.checked_mul(count)?, align.unwrap_or(element)))
}

/// Bytes of a fundamental type such as `.u64`.
fn type_size(word: &str) -> Option<usize> {
    let digits = word.strip_prefix('.')?.strip_prefix(['b', 'u', 's', 'f'])?;
    match digits {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
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
        .visible .entry mix(
            .param .u32 mix_0,
            .param .u64 .ptr .global .align 16 mix_1,
            .param .align 8 .b8 mix_2[24],
            .param .f32 mix_3
        )
        .maxntid 256, 1, 1
        {
            ld.global.f32 %f1, [%rd1];
            ret;
        }
        .entry bare { ret; }
        .entry empty() { ret; }
    ";

    #[test]
    fn kernels_are_found_with_the_place_of_each_parameter() {
        let text = parse(SAMPLE).unwrap();
        let names: Vec<_> = text.kernels.iter().map(|kernel| kernel.name.as_str()).collect();
        assert_eq!(names, ["mix", "bare", "empty"]);
        let places: Vec<_> = text.kernels[0].parameters.iter().map(|p| (p.offset, p.size)).collect();
        assert_eq!(places, [(0, 4), (8, 8), (16, 24), (40, 4)]);
        assert!(text.kernels[2].parameters.is_empty());
    }

    #[test]
    fn global_variables_are_found_with_their_size() {
        let text = parse(SAMPLE).unwrap();
        assert_eq!(text.variables, [("table".into(), 64), ("pi".into(), 4)]);
    }

    #[test]
    fn what_is_no_ptx_is_refused() {
        assert_eq!(parse("hello"), None);
        assert_eq!(parse(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(body in "[.a-z0-9 ,;(){}\\[\\]/*\n]{0,120}") {
            let _ = parse(&format!(".version 7.0\n.target sm_70\n.entry k({body}"));
        }
    }
}
