//! Which of a repository's files make the model: the same rule as for a directory on this machine.

const USUAL: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
pub(crate) const CONFIG: &str = "config.json";

/// The files that make a model, as paths in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub checkpoint: String,
    pub config: Option<String>,
}

impl Choice {
    /// Whether the checkpoint has diffusers' name, so that the config.json beside it is surely its own.
    pub(crate) fn usual(&self) -> bool {
        let name = self.checkpoint.rsplit('/').next().unwrap_or_default();
        USUAL.contains(&name)
    }

    /// Where the config.json of this checkpoint would be.
    pub(crate) fn config_path(&self) -> String {
        match self.checkpoint.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{CONFIG}"),
            None => CONFIG.to_owned(),
        }
    }
}

/// Chooses among `files` (paths in the repository) those of a folder, of a file, or of the root.
///
/// # Errors
/// The rest of a sentence that begins with the repository.
pub(crate) fn choose(files: &[String], folder: Option<&str>) -> Result<Choice, String> {
    let has = |path: &str| files.iter().any(|file| file == path);
    let with_config = |checkpoint: String| {
        let mut choice = Choice { checkpoint, config: None };
        choice.config = Some(choice.config_path()).filter(|path| has(path));
        choice
    };
    if let Some(file) = folder.filter(|folder| folder.ends_with(".safetensors")) {
        return match has(file) {
            true => Ok(with_config(file.to_owned())),
            false => Err(format!("has no file `{file}`")),
        };
    }
    let prefix = folder.map_or_else(String::new, |folder| format!("{folder}/"));
    if !files.iter().any(|file| file.starts_with(&prefix)) {
        return Err(match folder {
            Some(folder) => format!("has no folder `{folder}`"),
            None => "is empty".to_owned(),
        });
    }
    let usual = |prefix: &str| USUAL.into_iter().map(|name| format!("{prefix}{name}")).find(|path| has(path));
    if let Some(checkpoint) = usual(&prefix) {
        return Ok(with_config(checkpoint));
    }
    let inner = format!("{prefix}vae/");
    let prefix = if files.iter().any(|file| file.starts_with(&inner)) { inner } else { prefix };
    if let Some(checkpoint) = usual(&prefix) {
        return Ok(with_config(checkpoint));
    }
    let with = |extensions: &[&str]| -> Vec<&String> {
        let within = |file: &&String| file.strip_prefix(&prefix).is_some_and(|name| !name.contains('/'));
        let matches = |file: &&String| extensions.iter().any(|extension| file.ends_with(extension));
        files.iter().filter(within).filter(matches).collect()
    };
    let place =
        if prefix.is_empty() { "its root".to_owned() } else { format!("`{}`", prefix.trim_end_matches('/')) };
    match with(&[".safetensors"]).as_slice() {
        [only] => Ok(with_config((*only).clone())),
        [] => match with(&[".bin", ".ckpt", ".pt", ".pth"]).first() {
            Some(pickle) => Err(format!(
                "has no safetensors file in {place}, only `{pickle}`, which is a pickle; download that and convert it in \
                 Python"
            )),
            None => Err(format!("has no safetensors file in {place}")),
        },
        several => {
            let names: Vec<String> = several.iter().take(4).map(|name| format!("`{name}`")).collect();
            let more = if several.len() > names.len() { ", ..." } else { "" };
            Err(format!(
                "has {} safetensors files in {place} ({}{more}); name one of them, as in owner/name:{}",
                several.len(),
                names.join(", "),
                several[0]
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(files: &[&str], folder: Option<&str>) -> Result<Choice, String> {
        choose(&files.iter().map(|file| (*file).to_owned()).collect::<Vec<_>>(), folder)
    }

    fn chosen(checkpoint: &str, config: Option<&str>) -> Result<Choice, String> {
        Ok(Choice { checkpoint: checkpoint.into(), config: config.map(str::to_owned) })
    }

    const FULL: &str = "diffusion_pytorch_model.safetensors";
    const HALF: &str = "diffusion_pytorch_model.fp16.safetensors";

    #[test]
    fn diffusers_names_win() {
        let files = ["README.md", CONFIG, HALF, FULL, "sdxl_vae.safetensors"];
        assert_eq!(choice(&files, None), chosen(FULL, Some(CONFIG)));
        assert_eq!(choice(&files[..3], None), chosen(HALF, Some(CONFIG)));
        let explicit = choice(&files, Some("sdxl_vae.safetensors"));
        assert_eq!(explicit, chosen("sdxl_vae.safetensors", Some(CONFIG)));
        assert!(!explicit.unwrap().usual());
    }

    #[test]
    fn the_folder_of_a_pipeline_is_found() {
        let vae = format!("vae/{FULL}");
        let files = ["model_index.json", "ae.safetensors", "unet/x.safetensors", "vae/config.json", &vae];
        for folder in [None, Some("vae")] {
            assert_eq!(choice(&files, folder), chosen(&vae, Some("vae/config.json")));
        }
        assert_eq!(choice(&files, Some("unet")), chosen("unet/x.safetensors", None));
        assert_eq!(choice(&files, Some("vae_1_0")), Err("has no folder `vae_1_0`".into()));
        assert_eq!(choice(&files, Some("v")), Err("has no folder `v`".into()));
    }

    #[test]
    fn one_file_is_enough_and_several_are_too_many() {
        assert_eq!(choice(&["a.safetensors", "b/c.safetensors"], None), chosen("a.safetensors", None));
        let message = choice(&["a.safetensors", "b.safetensors"], None).unwrap_err();
        assert!(
            message.contains("has 2 safetensors files in its root (`a.safetensors`, `b.safetensors`)"),
            "{message}"
        );
        assert!(choice(&["m.ckpt"], None).unwrap_err().contains("`m.ckpt`, which is a pickle"));
        assert!(choice(&["README.md"], None).unwrap_err().contains("no safetensors file in its root"));
        assert_eq!(choice(&[], None), Err("is empty".into()));
        assert_eq!(
            choice(&["a.safetensors"], Some("b.safetensors")),
            Err("has no file `b.safetensors`".into())
        );
    }
}
