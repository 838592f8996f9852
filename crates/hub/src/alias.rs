//! Short names for the repositories that most people want, with what has to be known of them before a file is read.

use remote_vae_model::Family;

use crate::source::Repository;
use crate::space::Space;

/// A short name for a repository.
#[derive(Debug, PartialEq)]
pub struct Alias {
    /// The name.
    pub name: &'static str,
    /// Other names for it: of the diffusion models that use this autoencoder or one with the same latents.
    pub others: &'static [&'static str],
    /// `owner/name` on the hub.
    pub repository: &'static str,
    /// The folder in it.
    pub folder: Option<&'static str>,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<&'static str>,
    /// The latent space.
    pub space: Space,
    /// Its architecture.
    pub family: Family,
    /// The licence of the autoencoder's weights, which may be another than that of the diffusion model.
    pub licence: &'static str,
    /// Whether the repository gives its files only to accounts that have accepted its terms.
    pub token: bool,
}

const fn alias(name: &'static str, repository: &'static str, space: Space, licence: &'static str) -> Alias {
    Alias {
        name,
        others: &[],
        repository,
        folder: None,
        revision: None,
        space,
        family: Family::AutoencoderKl,
        licence,
        token: false,
    }
}

const fn tiny(name: &'static str, repository: &'static str, space: Space) -> Alias {
    Alias { family: Family::AutoencoderTiny, ..alias(name, repository, space, "MIT") }
}

const fn flux2(name: &'static str, repository: &'static str, licence: &'static str) -> Alias {
    Alias {
        folder: Some("vae"),
        family: Family::AutoencoderKlFlux2,
        ..alias(name, repository, Space::Flux2, licence)
    }
}

const fn video(
    name: &'static str,
    repository: &'static str,
    space: Space,
    family: Family,
    licence: &'static str,
) -> Alias {
    Alias { folder: Some("vae"), family, ..alias(name, repository, space, licence) }
}

/// Every alias.
pub const ALIASES: &[Alias] = &[
    Alias {
        others: &["sd", "sd1", "sd15", "sd1.5", "sd2", "sd21", "sd2.1", "sd-vae-ft-mse"],
        ..alias("sd-v1", "stabilityai/sd-vae-ft-mse", Space::Sd, "MIT")
    },
    Alias {
        others: &["pixart-alpha"],
        ..alias("sd-vae-ft-ema", "stabilityai/sd-vae-ft-ema", Space::Sd, "MIT")
    },
    Alias {
        others: &["sdxl-vae-fp16-fix", "pixart-sigma", "hunyuandit", "kolors", "auraflow", "omnigen"],
        ..alias("sdxl", "madebyollin/sdxl-vae-fp16-fix", Space::Sdxl, "MIT")
    },
    alias("sdxl-vae", "stabilityai/sdxl-vae", Space::Sdxl, "MIT"),
    Alias {
        others: &["flux1", "flux-schnell"],
        folder: Some("vae"),
        token: true,
        ..alias("flux", "black-forest-labs/FLUX.1-schnell", Space::Flux, "Apache-2.0")
    },
    Alias {
        folder: Some("vae"),
        token: true,
        ..alias("flux-dev", "black-forest-labs/FLUX.1-dev", Space::Flux, "Apache-2.0")
    },
    Alias {
        others: &["zimage", "z-image-turbo", "chroma", "lumina2", "hidream"],
        folder: Some("vae"),
        ..alias("z-image", "Tongyi-MAI/Z-Image-Turbo", Space::Flux, "Apache-2.0")
    },
    Alias {
        others: &["sd3-medium"],
        folder: Some("vae"),
        token: true,
        ..alias(
            "sd3",
            "stabilityai/stable-diffusion-3-medium-diffusers",
            Space::Sd3,
            "Stability AI Community",
        )
    },
    Alias {
        others: &["sd3.5", "sd35-medium", "sd3.5-medium", "sd35-large", "sd3.5-large"],
        folder: Some("vae"),
        token: true,
        ..alias("sd35", "stabilityai/stable-diffusion-3.5-medium", Space::Sd3, "Stability AI Community")
    },
    Alias {
        others: &["playground-v2.5"],
        folder: Some("vae"),
        ..alias(
            "playground",
            "playgroundai/playground-v2.5-1024px-aesthetic",
            Space::Playground,
            "Playground v2.5 Community",
        )
    },
    Alias {
        others: &["flux2-dev", "flux.2", "flux.2-dev"],
        token: true,
        ..flux2("flux2", "black-forest-labs/FLUX.2-dev", "Apache-2.0")
    },
    Alias {
        others: &["flux2-klein-4b", "flux.2-klein-4b"],
        ..flux2("flux2-klein", "black-forest-labs/FLUX.2-klein-4B", "Apache-2.0")
    },
    Alias {
        folder: None,
        ..flux2("flux2-small-decoder", "black-forest-labs/FLUX.2-small-decoder", "Apache-2.0")
    },
    Alias {
        others: &["hunyuanvideo", "framepack", "skyreels-v1"],
        ..video(
            "hunyuan-video",
            "hunyuanvideo-community/HunyuanVideo",
            Space::HunyuanVideo,
            Family::AutoencoderKlHunyuanVideo,
            "Tencent Hunyuan Community",
        )
    },
    Alias {
        others: &["wan", "wan2.1", "wan22-a14b", "wan2.2-a14b", "skyreels-v2"],
        ..video(
            "wan21",
            "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
            Space::Wan21,
            Family::AutoencoderKlWan,
            "Apache-2.0",
        )
    },
    Alias {
        others: &["wan2.2", "wan22-5b", "wan2.2-5b", "wan2.2-ti2v-5b"],
        ..video(
            "wan22",
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            Space::Wan22,
            Family::AutoencoderKlWan,
            "Apache-2.0",
        )
    },
    Alias {
        others: &["qwenimage", "qwen-image-edit"],
        ..video("qwen-image", "Qwen/Qwen-Image", Space::Wan21, Family::AutoencoderKlQwenImage, "Apache-2.0")
    },
    Alias {
        others: &["sana1.5", "sana-sprint", "dc-ae-f32c32-sana"],
        family: Family::AutoencoderDc,
        ..alias("sana", "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", Space::Sana, "MIT")
    },
    tiny("taesd", "madebyollin/taesd", Space::Sd),
    tiny("taesdxl", "madebyollin/taesdxl", Space::Sdxl),
    tiny("taesd3", "madebyollin/taesd3", Space::Sd3),
    tiny("taef1", "madebyollin/taef1", Space::Flux),
];

impl Alias {
    /// The alias of this name, in any case and with `_` for `-`.
    pub fn find(name: &str) -> Option<&'static Alias> {
        let name = name.to_ascii_lowercase().replace('_', "-");
        ALIASES.iter().find(|alias| alias.names().any(|known| known == name))
    }

    /// All its names, the first one first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.others.iter().copied())
    }

    /// What it stands for; `revision` wins over its own.
    pub fn repository(&self, revision: Option<&str>) -> Repository {
        Repository {
            id: self.repository.to_owned(),
            folder: self.folder.map(str::to_owned),
            revision: revision.or(self.revision).map(str::to_owned),
        }
    }

    /// The class of the autoencoder, as diffusers names it.
    pub fn architecture(&self) -> &'static str {
        self.family.name()
    }
}

/// The names most like `text`, best first: those that contain it or are contained in it, and those a few letters away.
pub(crate) fn near(text: &str) -> Vec<&'static str> {
    let text = text.to_ascii_lowercase().replace('_', "-");
    let text = text.rsplit('/').next().unwrap_or_default();
    if text.len() > 64 {
        return Vec::new();
    }
    let mut found: Vec<(usize, &'static str)> = ALIASES
        .iter()
        .flat_map(Alias::names)
        .filter_map(|name| {
            let steps = distance(text, name);
            let within = text.len() > 2 && (name.contains(text) || (name.len() > 2 && text.contains(name)));
            (within || steps <= 1 + name.len() / 4).then_some((steps, name))
        })
        .collect();
    found.sort();
    found.into_iter().map(|(_, name)| name).take(5).collect()
}

/// Letters to insert, delete, replace or swap with their neighbour between two words.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut steps = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                steps = steps.min(rows[i - 2][j - 2] + 1);
            }
            row.push(steps);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// The table of aliases in Markdown, as it stands in the documentation.
pub fn alias_table() -> String {
    let mut table = String::from(
        "| alias | also | repository | architecture | channels | scaling / shift | licence | token |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for alias in ALIASES {
        let also: Vec<String> = alias.others.iter().map(|name| format!("`{name}`")).collect();
        let factors = match (alias.family, alias.space.summary()) {
            (Family::AutoencoderTiny, factors) => format!("none (undoes {factors})"),
            (_, factors) => factors,
        };
        table += &format!(
            "| `{}` | {} | `{}` | {} | {} | {factors} | {} | {} |\n",
            alias.name,
            also.join(", "),
            alias.repository(None),
            alias.architecture(),
            alias.space.channels(),
            alias.licence,
            if alias.token { "yes" } else { "no" },
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_repositories_well_formed() {
        let mut names: Vec<_> = ALIASES.iter().flat_map(Alias::names).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for alias in ALIASES {
            let repository = alias.repository(None);
            assert_eq!(Repository::parse(&repository.to_string()).unwrap(), repository);
            for name in alias.names() {
                assert_eq!(Alias::find(&name.to_uppercase().replace('-', "_")), Some(alias));
            }
        }
    }

    #[test]
    fn near_names() {
        assert_eq!(near("sdlx")[0], "sdxl");
        assert!(near("sdxl-vae-fp16").contains(&"sdxl-vae-fp16-fix"));
        assert_eq!(near("madebyollin/taesdx")[0], "taesd");
        assert!(near("flux.1").contains(&"flux1"));
        assert!(near("wan2.1-t2v-14b").contains(&"wan2.1"));
        assert!(near("cogvideox").is_empty());
        assert!(near(&"x".repeat(1000)).is_empty());
    }

    #[test]
    fn the_documentation_holds_the_table() {
        let page = include_str!("../../../docs/models.md");
        assert!(page.contains(&alias_table()), "docs/models.md should hold:\n{}", alias_table());
    }
}
