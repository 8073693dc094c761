//! Fields of a protocol-buffers message, as they lie in its bytes.
//!
//! Pure. Borrows and copies nothing: a nested message is bytes until somebody reads its fields, and what nobody asks for,
//! such as a gigabyte of weights, costs nothing. The encoding: protobuf.dev/programming-guides/encoding.

use gpu_share::invalid::Invalid;

/// Bits of a byte of a varint that count, and the bytes that 64 of them take.
const VARINT_BITS: u32 = 7;
const VARINT_BYTES: u32 = 10;

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Varint.
    Number(u64),
    /// Eight bytes.
    Fixed64(u64),
    /// Four bytes.
    Fixed32(u32),
    /// Text, bytes, a message, or numbers one after the other.
    Bytes(&'a [u8]),
}

/// The fields of one message, as numbers and values.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Invalid>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            // What follows has lost its frame.
            self.0 = &[];
        }
        Some(field.ok_or_else(malformed))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 0b111 {
            0 => Value::Number(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            // Groups, which proto3 does not have.
            _ => return None,
        };
        (tag >> 3 > 0).then_some((tag >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for place in 0..VARINT_BYTES {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f).checked_shl(VARINT_BITS * place)?;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Value<'a> {
    /// Bytes, or a message.
    pub(super) fn bytes(self) -> Result<&'a [u8], Invalid> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(malformed()),
        }
    }

    /// Text.
    pub(super) fn text(self) -> Result<&'a str, Invalid> {
        core::str::from_utf8(self.bytes()?).map_err(|_| malformed())
    }

    /// A signed number.
    pub(super) fn number(self) -> Result<i64, Invalid> {
        match self {
            Self::Number(number) => Ok(number.cast_signed()),
            _ => Err(malformed()),
        }
    }

    /// A number of four bytes.
    pub(super) fn float(self) -> Result<f32, Invalid> {
        match self {
            Self::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(malformed()),
        }
    }

    /// Adds signed numbers to `numbers`, of which there may be one or many in a field, until there are `most`; what
    /// comes beyond is left where it is.
    pub(super) fn numbers(self, numbers: &mut Vec<i64>, most: usize) -> Result<(), Invalid> {
        let Self::Bytes(bytes) = self else {
            let number = self.number()?;
            numbers.extend(Some(number).filter(|_| numbers.len() < most));
            return Ok(());
        };
        let mut packed = Fields(bytes);
        while !packed.0.is_empty() && numbers.len() < most {
            numbers.push(packed.varint().ok_or_else(malformed)?.cast_signed());
        }
        Ok(())
    }

    /// Adds numbers of four bytes to `numbers`, as [`Self::numbers`] does.
    pub(super) fn floats(self, numbers: &mut Vec<f32>, most: usize) -> Result<(), Invalid> {
        let Self::Bytes(bytes) = self else {
            let number = self.float()?;
            numbers.extend(Some(number).filter(|_| numbers.len() < most));
            return Ok(());
        };
        let (floats, rest) = bytes.as_chunks();
        numbers.extend(floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).take(most - numbers.len()));
        rest.is_empty().then_some(()).ok_or_else(malformed)
    }
}

/// What bytes that are no message are refused with.
pub(super) fn malformed() -> Invalid {
    Invalid::new("file", "bytes that are no message of protocol buffers", "a model in the ONNX format")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_field_is_read() {
        // Field 1 is 150, the example of the encoding's documentation; 2 is text, 3 has four bytes and 4 eight.
        let bytes = [
            &[0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i'][..],
            &[0x1d, 0, 0, 0x80, 0x3f, 0x21, 7, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let fields: Vec<_> = Fields(&bytes).map(Result::unwrap).collect();
        let expected = [
            (1, Value::Number(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Fixed32(0x3f80_0000)),
            (4, Value::Fixed64(7)),
        ];
        assert_eq!(fields, expected);
        assert!((fields[2].1.float().unwrap() - 1.0).abs() < f32::EPSILON);
        assert_eq!(fields[1].1.text().unwrap(), "hi");
    }

    #[test]
    fn a_negative_number_takes_ten_bytes() {
        let bytes = [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        let (_, value) = Fields(&bytes).next().unwrap().unwrap();
        assert_eq!(value.number().unwrap(), -1);
    }

    #[test]
    fn numbers_come_packed_or_one_by_one_and_never_more_than_asked_for() {
        let mut numbers = Vec::new();
        Value::Bytes(&[1, 0x96, 0x01, 3]).numbers(&mut numbers, 8).unwrap();
        Value::Number(4).numbers(&mut numbers, 8).unwrap();
        assert_eq!(numbers, [1, 150, 3, 4]);
        Value::Bytes(&[9; 1000]).numbers(&mut numbers, 5).unwrap();
        assert_eq!(numbers, [1, 150, 3, 4, 9]);
        let mut floats = Vec::new();
        Value::Bytes(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0x40]).floats(&mut floats, 8).unwrap();
        assert_eq!(floats, [1.0, 2.0]);
        assert!(Value::Bytes(&[0; 7]).floats(&mut floats, 8).is_err());
    }

    #[test]
    fn what_is_cut_short_or_no_message_is_refused_once() {
        let bad: [&[u8]; 6] = [&[0x08], &[0x08, 0x80], &[0x12, 5, 1], &[0x0b], &[0x00, 0x01], &[0x1d, 1, 2]];
        for bytes in bad {
            let fields: Vec<_> = Fields(bytes).collect();
            assert!(fields.len() == 1 && fields[0].is_err(), "{bytes:?}: {fields:?}");
        }
    }
}
