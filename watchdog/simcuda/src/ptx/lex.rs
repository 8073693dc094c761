//! Words, numbers, texts and marks of a PTX text. Comments are left out. Any text can be cut into these.

/// A piece of a PTX text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name, a directive, an opcode with its modifiers, or a register.
    Word(&'a str),
    /// What begins with a digit.
    Number(&'a str),
    /// What stands between quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// A token and where it begins.
pub(super) type Spot<'a> = (usize, Token<'a>);

/// Cuts `text` into tokens.
pub(super) fn tokens(text: &str) -> Vec<Spot<'_>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if let Some(length) = skipped(rest) {
            at += length;
            continue;
        }
        let (token, length) = token(rest);
        found.push((at, token));
        at += length;
    }
    found
}

/// Length of the white space or the comment that `rest` begins with.
fn skipped(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if let Some(comment) = rest.strip_prefix("/*") {
        return Some(comment.find("*/").map_or(rest.len(), |end| end + 4));
    }
    let space = rest.len() - rest.trim_start().len();
    (space > 0).then_some(space)
}

fn is_word_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// The token that `rest`, which is not empty, begins with, and its length.
fn token(rest: &str) -> (Token<'_>, usize) {
    let first = rest.chars().next().unwrap_or(' ');
    if first == '"' {
        let inside = &rest[1..];
        let end = inside.find('"').unwrap_or(inside.len());
        return (Token::Text(&inside[..end]), (end + 2).min(rest.len()));
    }
    if !is_word_part(first) {
        return (Token::Mark(first), first.len_utf8());
    }
    let length = word_length(rest);
    // Directives may be written without a space between them: `.reg.b32`.
    let next = if first == '.' { rest[1..length].find('.') } else { None };
    let length = next.map_or(length, |dot| dot + 1);
    let word = &rest[..length];
    if first.is_ascii_digit() { (Token::Number(word), length) } else { (Token::Word(word), length) }
}

/// A word may hold `::`, as in `.shared::cta`, but no single colon, which ends a label.
fn word_length(rest: &str) -> usize {
    let mut length = 0;
    loop {
        length += rest[length..].find(|c| !is_word_part(c)).unwrap_or(rest.len() - length);
        if !rest[length..].starts_with("::") {
            return length;
        }
        length += 2;
    }
}

/// Reads tokens one after the other.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'t, 'a> {
    tokens: &'t [Spot<'a>],
    at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    pub(super) fn new(tokens: &'t [Spot<'a>]) -> Self {
        Self { tokens, at: 0 }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|&(_, token)| token)
    }

    pub(super) fn peek_second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at + 1).map(|&(_, token)| token)
    }

    /// Where the next token begins in the text.
    pub(super) fn place(&self) -> Option<usize> {
        self.tokens.get(self.at).map(|&(place, _)| place)
    }

    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek();
        self.at += usize::from(token.is_some());
        token
    }

    /// Takes the next token if it is `mark`.
    pub(super) fn take(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub(super) fn word(&mut self) -> Option<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Some(word)
            }
            _ => None,
        }
    }

    /// Takes all tokens up to the next one that is a mark for which `ends`, without it.
    pub(super) fn until(&mut self, ends: impl Fn(char) -> bool) -> &'t [Spot<'a>] {
        let start = self.at;
        while let Some(token) = self.peek() {
            if matches!(token, Token::Mark(mark) if ends(mark)) {
                break;
            }
            self.at += 1;
        }
        &self.tokens[start..self.at]
    }

    /// Takes a block whose opening brace has been taken already. Where its closing brace is; none if it has no end.
    pub(super) fn block(&mut self) -> Option<usize> {
        let mut depth = 1_u32;
        loop {
            let place = self.place()?;
            match self.next()? {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') if depth == 1 => return Some(place),
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_texts_and_marks_are_told_apart() {
        let text =
            "@%p1 bra $L_1; // end\n/* { */ .file 1 \"a b\" mbar.shared::cta L: 0f3F800000 .reg.b32 f;";
        let found: Vec<_> = tokens(text).into_iter().map(|(_, token)| token).collect();
        let expected = [
            Token::Mark('@'),
            Token::Word("%p1"),
            Token::Word("bra"),
            Token::Word("$L_1"),
            Token::Mark(';'),
            Token::Word(".file"),
            Token::Number("1"),
            Token::Text("a b"),
            Token::Word("mbar.shared::cta"),
            Token::Word("L"),
            Token::Mark(':'),
            Token::Number("0f3F800000"),
            Token::Word(".reg"),
            Token::Word(".b32"),
            Token::Word("f"),
            Token::Mark(';'),
        ];
        assert_eq!(found, expected);
    }
}
