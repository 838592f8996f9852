//! Cropping written into an H.264 sequence parameter set. No other field is touched, and nothing is parsed for reading.
//!
//! The encoder fills what a picture lacks to whole macroblocks with black, which shows at its edges; so it is given
//! whole macroblocks, and what players shall show is written here (ITU-T H.264, 7.3.2.1.1).

/// Side of a macroblock.
pub(crate) const MACROBLOCK: usize = 16;
/// The profiles whose parameter sets have no chroma fields: Baseline and Main.
const PLAIN_PROFILES: [u8; 2] = [66, 77];

/// Bits of a byte sequence, the highest of each byte first.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1 == 1;
        self.at += 1;
        Some(bit)
    }

    /// An unsigned Exp-Golomb number.
    fn unsigned(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.bit()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let mut value = 1u64;
        for _ in 0..zeros {
            value = value << 1 | u64::from(self.bit()?);
        }
        u32::try_from(value - 1).ok()
    }
}

fn push_unsigned(bits: &mut Vec<bool>, value: usize) {
    let value = value as u64 + 1;
    let length = 64 - value.leading_zeros();
    bits.extend((1..length).map(|_| false));
    bits.extend((0..length).rev().map(|bit| value >> bit & 1 == 1));
}

/// The parameter set `unit` (its header byte first) of a 4:2:0 picture of whole macroblocks, changed so that `right`
/// columns and `bottom` rows, both even, are not shown. `None` for a set that is cropped already, of another profile, or
/// cut off.
pub(crate) fn with_cropping(unit: &[u8], right: usize, bottom: usize) -> Option<Vec<u8>> {
    let plain = without_emulation_prevention(unit);
    if !PLAIN_PROFILES.contains(plain.get(1)?) {
        return None;
    }
    // The header byte, profile, constraints and level.
    let mut reader = Reader { bytes: &plain, at: 32 };
    let _set = reader.unsigned()?;
    let _frame_number_bits = reader.unsigned()?;
    match reader.unsigned()? {
        0 => _ = reader.unsigned()?,
        2 => {}
        _ => return None,
    }
    let _references = reader.unsigned()?;
    let _gaps = reader.bit()?;
    let _width = reader.unsigned()?;
    let _height = reader.unsigned()?;
    let is_progressive = reader.bit()?;
    let _direct_inference = reader.bit()?;
    let crop_flag = reader.at;
    let is_cropped = reader.bit()?;
    if is_cropped || !is_progressive {
        return None;
    }
    let last = plain.iter().rposition(|&byte| byte != 0)?;
    let stop = last * 8 + 7 - plain[last].trailing_zeros() as usize;
    let mut all = Reader { bytes: &plain, at: 0 };
    let mut bits: Vec<bool> = (0..crop_flag).map_while(|_| all.bit()).collect();
    bits.push(true);
    for side in [0, right / 2, 0, bottom / 2] {
        push_unsigned(&mut bits, side);
    }
    all.at = crop_flag + 1;
    // The stop bit goes along.
    bits.extend((crop_flag + 1..=stop).map_while(|_| all.bit()));
    let bytes: Vec<u8> = bits
        .chunks(8)
        .map(|bits| bits.iter().zip(0..).fold(0, |byte, (&bit, at)| byte | u8::from(bit) << (7 - at)))
        .collect();
    Some(with_emulation_prevention(&bytes))
}

/// Without the 3 that stands behind two zeros.
fn without_emulation_prevention(unit: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(unit.len());
    let mut zeros = 0;
    for &byte in unit {
        if zeros >= 2 && byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        plain.push(byte);
    }
    plain
}

/// With a 3 behind two zeros that are followed by 0 to 3.
fn with_emulation_prevention(plain: &[u8]) -> Vec<u8> {
    let mut unit = Vec::with_capacity(plain.len() + 4);
    let mut zeros = 0;
    for &byte in plain {
        if zeros >= 2 && byte <= 3 {
            unit.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        unit.push(byte);
    }
    unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_prevention_returns() {
        let plain = [0x67, 0, 0, 0, 0, 1, 0, 0, 3, 0, 0, 4];
        let unit = with_emulation_prevention(&plain);
        assert_eq!(unit, [0x67, 0, 0, 3, 0, 0, 3, 1, 0, 0, 3, 3, 0, 0, 4]);
        assert_eq!(without_emulation_prevention(&unit), plain);
    }

    #[test]
    fn numbers_return() {
        for value in [0, 1, 2, 3, 6, 7, 119, 65535] {
            let mut bits = Vec::new();
            push_unsigned(&mut bits, value);
            let bytes: Vec<u8> = bits
                .chunks(8)
                .map(|bits| bits.iter().zip(0..).fold(0, |byte, (&bit, at)| byte | u8::from(bit) << (7 - at)))
                .collect();
            assert_eq!(Reader { bytes: &bytes, at: 0 }.unsigned(), Some(value as u32));
        }
    }

    #[test]
    fn other_sets_are_left_alone() {
        for unit in
            [&[0x67][..], &[0x67, 100, 0, 30, 0xff, 0xff], &[0x67, 66, 0, 30], &[0x67, 66, 0, 30, 0, 0, 0, 0]]
        {
            assert_eq!(with_cropping(unit, 2, 2), None, "{unit:?}");
        }
    }
}
