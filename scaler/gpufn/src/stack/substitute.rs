//! `${NAME}` and its forms with a default, in the text of a stack file.
//!
//! faas-cli substitutes before it reads the YAML; so does this. The forms that cut and replace text are refused, not
//! passed through.

use gpu_share::invalid::Invalid;

const ALLOWED: &str = "${NAME}, ${NAME:-default} or ${NAME-default}";

/// `text` with every `${…}` replaced. A variable that is not set and has no default is empty.
pub(super) fn substitute(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, Invalid> {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = rest.split_at(start);
        let inside = &after[2..];
        let Some(end) = inside.find('}') else {
            return Err(Invalid::new("variable", after.lines().next().unwrap_or_default(), ALLOWED));
        };
        done.push_str(before);
        done.push_str(&value(&inside[..end], &variable)?);
        rest = &inside[end + 1..];
    }
    done.push_str(rest);
    Ok(done)
}

fn value(inside: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, Invalid> {
    let bad = || Invalid::new("variable", format!("${{{inside}}}"), ALLOWED);
    let end = inside.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inside.len());
    let (name, operator) = inside.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(bad());
    }
    let set = variable(name);
    // `=` also means a default here, since nothing can be assigned.
    let default = |prefixes: [&str; 2]| prefixes.iter().find_map(|prefix| operator.strip_prefix(prefix));
    if operator.is_empty() {
        Ok(set.unwrap_or_default())
    } else if let Some(default) = default([":-", ":="]) {
        Ok(set.filter(|value| !value.is_empty()).unwrap_or_else(|| default.into()))
    } else if let Some(default) = default(["-", "="]) {
        Ok(set.unwrap_or_else(|| default.into()))
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "SET" => Some("value".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_and_their_defaults_are_replaced() {
        let text =
            "${SET} ${EMPTY}| ${NONE}| ${NONE:-a/b:c} ${EMPTY:-d} ${EMPTY-d}| ${NONE-e} ${NONE:=f} $SET $";
        let expected = "value | | a/b:c d | e f $SET $";
        assert_eq!(substitute(text, variable).unwrap(), expected);
    }

    #[test]
    fn other_forms_are_refused_by_name() {
        for (text, named) in
            [("${SET^^}", "${SET^^}"), ("${}", "${}"), ("${1}", "${1}"), ("a ${SET", "${SET")]
        {
            let error = substitute(text, variable).unwrap_err().to_string();
            assert!(error.starts_with(&format!("variable is {named:?}")), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_variables_stays_as_it_is(text in "[^{]{0,100}") {
            proptest::prop_assert_eq!(substitute(&text, variable).unwrap(), text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\$\\{\\}:=a-z\u{e9}-]{0,60}") {
            let _ = substitute(&text, variable);
        }
    }
}
