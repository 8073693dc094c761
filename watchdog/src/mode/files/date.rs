//! The dates of HTTP, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7), to the second.

use std::time::SystemTime;

use time::format_description::FormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

const FORMAT: &[FormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// A time as HTTP writes it; empty for one that no calendar has.
pub(crate) fn http_date(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(FORMAT).unwrap_or_default()
}

/// Seconds since 1970 of a time as HTTP writes it.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let time = PrimitiveDateTime::parse(text, FORMAT).ok()?.assume_utc();
    time.unix_timestamp().try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_date_reads_back() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(http_date(time), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(&http_date(time)), Some(784_111_777));
        assert_eq!(parse("yesterday"), None);
    }
}
