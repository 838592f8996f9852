//! What stands behind a flag: the types of values and how they are read from text.

/// `NAME=SOURCE`, or a bare SOURCE that is named after its last part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedSource {
    pub name: String,
    pub source: String,
}

/// A [`NamedSource`].
pub(crate) fn parse_named_source(text: &str) -> Result<NamedSource, String> {
    let plain = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if let Some((name, source)) = text.split_once('=')
        && !name.contains(['/', ','])
    {
        if !plain(name) {
            return Err(format!("the name {name:?} may hold letters, digits, `.`, `_` and `-` only"));
        }
        if source.is_empty() {
            return Err(format!("the model {name:?} has no SOURCE"));
        }
        return Ok(NamedSource { name: name.to_owned(), source: source.to_owned() });
    }
    let name = remote_vae_hub::short_name(text);
    if !plain(&name) {
        return Err(format!("{text:?} gives no usable name; write NAME={text}"));
    }
    Ok(NamedSource { name, source: text.to_owned() })
}

/// Of a picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub width: usize,
    pub height: usize,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Bytes, from a number with or without a unit.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        _ => 0.0,
    };
    let bytes = number.parse::<f64>().map_or(0.0, |number| number * unit);
    if (1.0..9e18).contains(&bytes) {
        return Ok(bytes as u64);
    }
    Err(format!("{text:?} is not an amount of memory; write a number and a unit, e.g. 640MiB or 1.2GiB"))
}

/// `WIDTHxHEIGHT`
pub(crate) fn parse_size(text: &str) -> Result<Size, String> {
    let sides = text.split_once(['x', 'X']).and_then(|(width, height)| {
        Some(Size { width: width.trim().parse().ok()?, height: height.trim().parse().ok()? })
    });
    sides
        .filter(|size| size.width > 0 && size.height > 0)
        .ok_or_else(|| format!("{text:?} is not a size; write width x height in pixels, e.g. 768x512"))
}

/// A kind of request that load is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub size: Size,
    pub format: Format,
}

/// What an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Uint8,
    Png,
    Jpg,
}

/// `WxH`, or `WxH:FORMAT`
pub(crate) fn parse_kind(text: &str) -> Result<Kind, String> {
    let (size, format) = text.split_once(':').unwrap_or((text, "raw"));
    let format = match format {
        "raw" => Format::Raw,
        "uint8" => Format::Uint8,
        "png" => Format::Png,
        "jpg" => Format::Jpg,
        _ => return Err(format!("{format:?} is not raw, uint8, png or jpg")),
    };
    Ok(Kind { size: parse_size(size)?, format })
}

/// Requests in a second.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.001..=1e6).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a number from 0.001 to 1000000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_named_or_name_themselves() {
        let named = |name: &str, source: &str| Ok(NamedSource { name: name.into(), source: source.into() });
        assert_eq!(parse_named_source("sd=/models/a=b"), named("sd", "/models/a=b"));
        assert_eq!(
            parse_named_source("/models/sdxl_vae.safetensors"),
            named("sdxl_vae", "/models/sdxl_vae.safetensors")
        );
        assert_eq!(
            parse_named_source("/models/a=b"),
            Err(r#""/models/a=b" gives no usable name; write NAME=/models/a=b"#.into())
        );
        assert!(parse_named_source("my model=x").is_err());
        assert!(parse_named_source("sd=").is_err());
    }

    #[test]
    fn kinds_are_sizes_with_formats() {
        let size = Size { width: 64, height: 32 };
        assert_eq!(parse_kind("64x32:png"), Ok(Kind { size, format: Format::Png }));
        assert_eq!(parse_kind("64x32"), Ok(Kind { size, format: Format::Raw }));
        assert!(parse_kind("64x32:bmp").is_err() && parse_kind("png").is_err());
    }

    #[test]
    fn amounts_of_memory_have_units() {
        for (text, bytes) in
            [("640MiB", 640 << 20), ("1.5 GiB", 3 << 29), ("2g", 2 << 30), ("4096", 4096), ("1MB", 1_000_000)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "0", "MiB", "-1GiB", "1.2.3G", "12 parsecs", "1e30"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_width_times_height() {
        assert_eq!(parse_size("768x512"), Ok(Size { width: 768, height: 512 }));
        for bad in ["768", "0x8", "8x", "-8x8", "8x8x8"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
