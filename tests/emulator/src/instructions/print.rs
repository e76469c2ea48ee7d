//! `printf` of kernels, as calls of `vprintf`: a format and the address of its arguments, each aligned to its own size.

use std::sync::Arc;

use super::{load_store, seen};
use crate::error::FaultKind;
use crate::lanes::Lanes;
use crate::operand::Place;
use crate::step::{Access, Execute, Next, Step, at};

/// Longest string, and longest run of what a conversion fills up to.
const MOST: usize = 1 << 16;

/// Prints what `format` points to with what `arguments` point to; `count` gets the number of arguments, all of which are in local memory.
pub(crate) fn print(format: Place, arguments: Place, count: Option<Place>) -> Option<Arc<dyn Execute>> {
    seen(move |step| {
        for lane in Lanes(step.active) {
            print_one(step, lane, &format, &arguments, count.as_ref()).map_err(at(lane))?;
        }
        Ok(Next::Seen)
    })
}

fn print_one(step: &mut Step, lane: usize, format: &Place, arguments: &Place, count: Option<&Place>) -> Access<()> {
    let format = load_store::value(step, lane, format.space, format.offset as u64, 8)?;
    let mut next = load_store::value(step, lane, arguments.space, arguments.offset as u64, 8)?;
    let format = string(step, lane, format)?;
    let (mut text, mut arguments) = (Vec::new(), 0);
    let mut rest = &format[..];
    while let Some(percent) = rest.iter().position(|&byte| byte == b'%') {
        text.extend_from_slice(&rest[..percent]);
        let (conversion, after) = Conversion::parse(&rest[percent + 1..]).ok_or(FaultKind::Unsupported)?;
        rest = after;
        if conversion.letter == b'%' {
            text.push(b'%');
            continue;
        }
        let mut argument = |step: &mut Step, size: u64| {
            next = next.wrapping_add(size - 1) & !(size - 1);
            arguments += 1;
            let value = load_store::value(step, lane, None, next, size as usize)?;
            next = next.wrapping_add(size);
            Access::Ok(value)
        };
        let mut given = |step: &mut Step, wanted: Wanted| {
            Access::Ok(match wanted {
                Wanted::None => None,
                Wanted::Number(n) => Some(n),
                Wanted::Argument => Some(argument(step, 4)? as i32 as i64),
            })
        };
        let (width, precision) = (given(step, conversion.width)?, given(step, conversion.precision)?);
        let value = argument(step, if conversion.long { 8 } else { 4 })?;
        let part = match conversion.letter {
            b's' => string(step, lane, value)?,
            _ => Vec::new(),
        };
        text.extend(conversion.write(value, &part, width.unwrap_or(0), precision));
    }
    text.extend_from_slice(rest);
    if let Some(place) = count {
        load_store::put_local(step, lane, place.offset as u64, 4, arguments, false)?;
    }
    step.run.memory.print(&String::from_utf8_lossy(&text));
    Ok(())
}

fn string(step: &mut Step, lane: usize, address: u64) -> Access<Vec<u8>> {
    let mut bytes = Vec::new();
    while bytes.len() < MOST {
        match load_store::value(step, lane, None, address.wrapping_add(bytes.len() as u64), 1)? as u8 {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    Ok(bytes)
}

/// A width or a precision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    None,
    Number(i64),
    /// `*`
    Argument,
}

/// What stands after a `%`, as C has it.
#[derive(Debug)]
struct Conversion<'f> {
    flags: &'f [u8],
    width: Wanted,
    precision: Wanted,
    /// Its argument has eight bytes
    long: bool,
    letter: u8,
}

impl<'f> Conversion<'f> {
    /// The conversion, and what follows; none of one that C does not have.
    fn parse(text: &'f [u8]) -> Option<(Self, &'f [u8])> {
        let run = |text: &[u8], of: &[u8]| text.iter().take_while(|byte| of.contains(byte)).count();
        let number = |text: &'f [u8]| -> Option<(Wanted, &'f [u8])> {
            if let [b'*', rest @ ..] = text {
                return Some((Wanted::Argument, rest));
            }
            let (digits, rest) = text.split_at(run(text, b"0123456789"));
            let value = digits
                .iter()
                .try_fold(0i64, |n, digit| Some(n * 10 + i64::from(digit - b'0')).filter(|&n| n < MOST as i64));
            Some((if digits.is_empty() { Wanted::None } else { Wanted::Number(value?) }, rest))
        };
        let (flags, rest) = text.split_at(run(text, b"-+ #0"));
        let (width, rest) = number(rest)?;
        let (precision, rest) = match rest {
            [b'.', rest @ ..] => match number(rest)? {
                (Wanted::None, rest) => (Wanted::Number(0), rest),
                some => some,
            },
            _ => (Wanted::None, rest),
        };
        let (length, rest) = rest.split_at(run(rest, b"hljztL"));
        let (&letter, rest) = rest.split_first()?;
        let long = match letter {
            b'd' | b'i' | b'u' | b'o' | b'x' | b'X' => matches!(length, b"l" | b"ll" | b"j" | b"z" | b"t"),
            b'e' | b'E' | b'f' | b'F' | b'g' | b'G' | b's' | b'p' => true,
            b'c' | b'%' => false,
            _ => return None,
        };
        Some((Self { flags, width, precision, long, letter }, rest))
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.contains(&flag)
    }

    /// The text of an argument; of `%s`, that of `string`.
    fn write(&self, value: u64, string: &[u8], width: i64, precision: Option<i64>) -> Vec<u8> {
        let precision = precision.filter(|&digits| digits >= 0).map(|digits| digits as usize);
        let whole = |digits: String| match precision {
            Some(0) if value == 0 => String::new(),
            Some(least) => format!("{digits:0>least$}"),
            None => digits,
        };
        let prefixed = |prefix: &str| if self.has(b'#') && value != 0 { prefix.to_string() } else { String::new() };
        let signed = |negative: bool| match (negative, self.has(b'+'), self.has(b' ')) {
            (true, ..) => "-".to_string(),
            (_, true, _) => "+".to_string(),
            (.., true) => " ".to_string(),
            _ => String::new(),
        };
        let number = f64::from_bits(value);
        let (before, digits) = match self.letter {
            b'd' | b'i' => {
                let n = if self.long { value as i64 } else { i64::from(value as i32) };
                (signed(n < 0), whole(n.unsigned_abs().to_string()))
            }
            b'u' => (String::new(), whole(value.to_string())),
            b'o' => (prefixed("0"), whole(format!("{value:o}"))),
            b'x' => (prefixed("0x"), whole(format!("{value:x}"))),
            b'X' => (prefixed("0X"), whole(format!("{value:X}"))),
            b'p' => (String::new(), format!("{value:#x}")),
            b'c' => (String::new(), String::from_utf8_lossy(&[value as u8]).into_owned()),
            b's' => {
                let length = precision.unwrap_or(string.len()).min(string.len());
                (String::new(), String::from_utf8_lossy(&string[..length]).into_owned())
            }
            letter => {
                let digits = self.float(number.abs(), precision.unwrap_or(6));
                let digits = if letter.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
                (signed(number.is_sign_negative() && !number.is_nan()), digits)
            }
        };
        let fill = (width.unsigned_abs() as usize).min(MOST).saturating_sub(before.len() + digits.len());
        let float = matches!(self.letter, b'e' | b'E' | b'f' | b'F' | b'g' | b'G');
        let zeros = self.has(b'0')
            && if float { number.is_finite() } else { precision.is_none() && !b"scp".contains(&self.letter) };
        if self.has(b'-') || width < 0 {
            format!("{before}{digits}{}", " ".repeat(fill))
        } else if zeros {
            format!("{before}{}{digits}", "0".repeat(fill))
        } else {
            format!("{}{before}{digits}", " ".repeat(fill))
        }
        .into_bytes()
    }

    /// A number that is not negative, by the letter.
    fn float(&self, number: f64, precision: usize) -> String {
        if !number.is_finite() {
            return if number.is_nan() { "nan" } else { "inf" }.into();
        }
        let scientific = |digits: usize| {
            let text = format!("{number:.digits$e}");
            let (fraction, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            (format!("{fraction}e{sign}{:02}", exponent.abs()), exponent)
        };
        match self.letter {
            b'e' | b'E' => scientific(precision).0,
            b'f' | b'F' => format!("{number:.precision$}"),
            _ => {
                let digits = precision.max(1);
                let (text, exponent) = scientific(digits - 1);
                let (text, tail) = if exponent < -4 || exponent >= digits as i32 {
                    let (fraction, tail) = text.split_once('e').unwrap_or((&text, ""));
                    (fraction.to_string(), format!("e{tail}"))
                } else {
                    let after = (digits as i32 - 1 - exponent) as usize;
                    (format!("{number:.after$}"), String::new())
                };
                if self.has(b'#') || !text.contains('.') {
                    return text + &tail;
                }
                text.trim_end_matches('0').trim_end_matches('.').to_string() + &tail
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What C's own gives.
    #[test]
    fn conversions() {
        let text = |format: &str, value: u64| {
            let (conversion, rest) = Conversion::parse(&format.as_bytes()[1..]).unwrap();
            assert!(rest.is_empty(), "{format}");
            let fixed = |wanted| match wanted {
                Wanted::Number(n) => Some(n),
                _ => None,
            };
            let (width, precision) = (fixed(conversion.width), fixed(conversion.precision));
            String::from_utf8(conversion.write(value, b"text", width.unwrap_or(0), precision)).unwrap()
        };
        let f = f64::to_bits;
        for (format, value, expected) in [
            ("%d", -5i32 as u32 as u64, "-5"),
            ("%5d", 42, "   42"),
            ("%-5d", 42, "42   "),
            ("%05d", -42i32 as u32 as u64, "-0042"),
            ("%+d", 7, "+7"),
            ("% d", 7, " 7"),
            ("%.3d", 7, "007"),
            ("%lld", -1i64 as u64, "-1"),
            ("%u", 0xffff_ffff, "4294967295"),
            ("%#x", 255, "0xff"),
            ("%08X", 0xbeef, "0000BEEF"),
            ("%o", 8, "10"),
            ("%c", 65, "A"),
            ("%6s", 0, "  text"),
            ("%.2s", 0, "te"),
            ("%p", 0x1000, "0x1000"),
            ("%f", f(1.5), "1.500000"),
            ("%8.2f", f(-4.14159), "   -4.14"),
            ("%.0f", f(2.5), "2"),
            ("%e", f(12345.678), "1.234568e+04"),
            ("%.2E", f(0.00012), "1.20E-04"),
            ("%g", f(0.0001), "0.0001"),
            ("%g", f(1e-5), "1e-05"),
            ("%g", f(100_000.0), "100000"),
            ("%g", f(1e6), "1e+06"),
            ("%g", f(0.0), "0"),
            ("%.3g", f(4.14159), "4.14"),
            ("%f", f(f64::INFINITY), "inf"),
            ("%05f", f(f64::NEG_INFINITY), " -inf"),
            ("%F", f(f64::NAN), "NAN"),
        ] {
            assert_eq!(text(format, value), expected, "{format}");
        }
        assert!(Conversion::parse(b"q").is_none() && Conversion::parse(b"").is_none());
    }
}
