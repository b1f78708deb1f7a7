//! The table `world` of a recipe: which environment, and how it is set.

use actloom_engine::op::{Arity, Kind, Ports, Problem};
use camino::Utf8Path;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EnvError, Suite, command, household, scienceworld, webshop};

/// Which world, and how it is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "env", rename_all = "lowercase")]
pub enum WorldSettings {
    /// ALFWorld's text world of rooms, receptacles and objects: generated, or original games.
    Household(household::Settings),
    /// WebShop's store of products: a catalogue of `catalogue`.
    Webshop(webshop::Settings),
    /// The ScienceWorld simulator, which runs on Java.
    Scienceworld(scienceworld::Settings),
    /// A program of your own that speaks JSON lines.
    Command(command::Settings),
}

impl Default for WorldSettings {
    fn default() -> Self {
        WorldSettings::Household(household::Settings::default())
    }
}

impl WorldSettings {
    /// `household`
    pub fn name(&self) -> &'static str {
        match self {
            WorldSettings::Household(_) => "household",
            WorldSettings::Webshop(_) => "webshop",
            WorldSettings::Scienceworld(_) => "scienceworld",
            WorldSettings::Command(_) => "command",
        }
    }

    /// Adds the input `data` as the environment takes it.
    pub fn port(&self, ports: Ports) -> Ports {
        let (kind, arity, about) = match self {
            WorldSettings::Household(_) => {
                (Kind::GAMES, Arity::Optional, "ALFWorld's games: `json_2.1.1`; generated rooms if it is left out")
            }
            WorldSettings::Webshop(_) => (Kind::CATALOGUE, Arity::One, "products, goals and the search index"),
            WorldSettings::Scienceworld(_) => (
                Kind::PROGRAM,
                Arity::Optional,
                "`scienceworld.jar`; if it is left out, `SCIENCEWORLD_JAR`, else the Python package's",
            ),
            WorldSettings::Command(_) => {
                (Kind::PROGRAM, Arity::Optional, "the program or its folder, `{data}` in the command")
            }
        };
        ports.port("data", &[kind], arity, about)
    }

    /// What of the settings, or of a split's name, cannot be. Paths begin at `world` or `split`.
    pub fn check(&self, split: Option<&str>) -> Vec<Problem> {
        let splits: &[&str] = match self {
            WorldSettings::Household(_) => &household::SPLITS,
            WorldSettings::Webshop(_) => &webshop::SPLITS,
            WorldSettings::Scienceworld(_) => &scienceworld::SPLITS,
            // the program's own
            WorldSettings::Command(_) => &[],
        };
        let mut problems = match self {
            WorldSettings::Household(_) => Vec::new(),
            WorldSettings::Webshop(settings) => settings.check(),
            WorldSettings::Scienceworld(settings) => settings.check(),
            WorldSettings::Command(settings) => settings.check(),
        };
        if let Some(split) = split
            && !splits.is_empty()
            && !splits.contains(&split)
        {
            problems.push(
                Problem::new(&["split"], format!("`{split}` is no split of the environment `{}`", self.name()))
                    .help(format!("it has `{}`", splits.join("`, `"))),
            );
        }
        problems
    }

    /// Opens the environment; `data` is what the input of that name holds.
    ///
    /// # Errors
    /// Names what is missing or cannot be read.
    pub fn open(&self, data: Option<&Utf8Path>) -> Result<Box<dyn Suite>, EnvError> {
        match self {
            WorldSettings::Household(settings) => household::open(settings, data),
            WorldSettings::Webshop(settings) => webshop::open(settings, data),
            WorldSettings::Scienceworld(settings) => scienceworld::open(settings, data),
            WorldSettings::Command(settings) => command::open(settings, data),
        }
    }
}
