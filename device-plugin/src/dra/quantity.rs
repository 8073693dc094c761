//! Kubernetes' quantities: numbers with a suffix, as capacities of devices are written. Pure.
//!
//! Source: k8s.io/apimachinery, `resource.Quantity`.

use gpu_share::units::Bytes;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Suffixes, the longer ones first, as numerator and denominator.
const SUFFIXES: [(&str, u64, u64); 15] = [
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
];
/// Most digits that are read; a quantity has 19 at most before it is rounded.
const DIGITS: usize = 19;

/// The number that `text` stands for, rounded up to a whole one as Kubernetes rounds it; `None` if it is none, or negative, or
/// more than there is room for.
pub fn parse(text: &str) -> Option<u64> {
    let (number, numerator, denominator) = split(text)?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{decimals}");
    if digits.is_empty() || digits.len() > DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let places = u32::try_from(decimals.len()).ok()?;
    let scaled = digits.parse::<u128>().ok()?.checked_mul(numerator)?;
    u64::try_from(scaled.div_ceil(denominator.checked_mul(10_u128.checked_pow(places)?)?)).ok()
}

/// Number, and by what it is to be multiplied and divided.
fn split(text: &str) -> Option<(&str, u128, u128)> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let of_suffix = SUFFIXES.iter().find_map(|&(suffix, numerator, denominator)| {
        Some((text.strip_suffix(suffix)?, u128::from(numerator), u128::from(denominator)))
    });
    if of_suffix.is_some() {
        return of_suffix;
    }
    let Some((number, exponent)) = text.split_once(['e', 'E']) else { return Some((text, 1, 1)) };
    let exponent: i32 = exponent.parse().ok()?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
    Some(if exponent < 0 { (number, 1, power) } else { (number, power, 1) })
}

/// An amount of memory, rounded down to mebibytes, in the form that the API server gives it too.
pub fn mebibytes(bytes: Bytes) -> Quantity {
    let (mut number, mut suffixes) = (bytes.0 >> 20, ["Mi", "Gi", "Ti", "Pi"].into_iter());
    let mut suffix = suffixes.next().unwrap_or_default();
    while number > 0 && number % 1024 == 0 {
        let Some(larger) = suffixes.next() else { break };
        (number, suffix) = (number / 1024, larger);
    }
    Quantity(if number == 0 { "0".into() } else { format!("{number}{suffix}") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_of_every_form_are_read() {
        let cases = [
            ("25", 25),
            ("25000m", 25),
            ("24001m", 25),
            ("4Gi", 4 << 30),
            ("0.5Gi", 1 << 29),
            ("1.5k", 1500),
            ("1E", 1_000_000_000_000_000_000),
            ("12E1", 120),
            ("1200e-1", 120),
            ("+3", 3),
            (".5", 1),
            ("0", 0),
        ];
        for (text, value) in cases {
            assert_eq!(parse(text), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        let digits = "1".repeat(20);
        for text in
            ["", "Gi", ".", "-1", "1 Gi", "1KiB", "0x10", "1e", "1e400", "16Ei", "1.2.3", "NaN", &digits]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn memory_is_written_as_the_api_server_writes_it() {
        let written = |mib| mebibytes(Bytes::mib(mib)).0;
        assert_eq!((written(16 << 10).as_str(), written(143_771).as_str()), ("16Gi", "143771Mi"));
        assert_eq!((written(1536).as_str(), written(0).as_str()), ("1536Mi", "0"));
        assert_eq!(mebibytes(Bytes(Bytes::mib(2).0 - 1)).0, "1Mi", "what is not there is not offered");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,24}") {
            let _ = parse(&text);
        }

        #[test]
        fn numbers_with_a_suffix_are_read(number in 0u64..1_000_000, thousandths in 0u64..1000) {
            prop_assert_eq!(parse(&format!("{number}.{thousandths:03}Mi")),
                Some(((number * 1000 + thousandths) * (1 << 20)).div_ceil(1000)));
            prop_assert_eq!(parse(&mebibytes(Bytes::mib(number)).0), Some(number << 20));
        }
    }
}
