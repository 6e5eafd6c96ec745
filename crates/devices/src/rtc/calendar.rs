//! The civil calendar in days since 1970-01-01, proleptic Gregorian.

/// A date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1..=12.
    pub(super) month: i64,
    /// 1..=31.
    pub(super) day: i64,
}

/// Years are counted from March, so that the leap day is the last of a year; an era is 400 years, 146097 days.
const DAYS_PER_ERA: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;

/// Days since the epoch; days beyond the month's end go on into the next.
pub(super) fn days(date: Date) -> i64 {
    let year = if date.month <= 2 { date.year - 1 } else { date.year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((date.month + 9) % 12) + 2) / 5 + date.day - 1;
    era * DAYS_PER_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - EPOCH
}

/// The date of a day.
pub(super) fn date(days: i64) -> Date {
    let days = days + EPOCH;
    let era = days.div_euclid(DAYS_PER_ERA);
    let day_of_era = days.rem_euclid(DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = (from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    Date { year, month, day: day_of_year - (153 * from_march + 2) / 5 + 1 }
}

/// 1 for Sunday to 7 for Saturday, as the clock counts.
pub(super) fn weekday(days: i64) -> i64 {
    (days + 4).rem_euclid(7) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        for (year, month, day, number, name) in [
            (1970, 1, 1, 0, 5),
            (2000, 2, 29, 11_016, 3),
            (2024, 12, 31, 20_088, 3),
            (2026, 11, 1, 20_758, 1),
            (1900, 3, 1, -25_508, 5),
        ] {
            assert_eq!(days(Date { year, month, day }), number);
            assert_eq!(date(number), Date { year, month, day });
            assert_eq!(weekday(number), name, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn every_day_has_a_successor() {
        let mut previous = date(-200_000);
        for number in -199_999..200_000 {
            let next = date(number);
            assert_eq!(days(next), number);
            let continues = next.day == previous.day + 1 && next.month == previous.month
                || next.day == 1
                    && (next.month == previous.month + 1 || next.month == 1 && previous.month == 12);
            assert!(continues, "{previous:?} {next:?}");
            previous = next;
        }
    }
}
