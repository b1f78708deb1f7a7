//! `actloom schema`: a JSON Schema of recipes, for editors.

use actloom_engine::schema::recipe_schema;
use actloom_ops::registry::registry;

use crate::exit::{Exit, Failure};
use crate::terminal::out;

pub fn run() -> Result<Exit, Failure> {
    match serde_json::to_string_pretty(&recipe_schema(&registry())) {
        Ok(schema) => out(&schema),
        Err(error) => panic!("BUG: the schema of recipes is no JSON: {error}"),
    }
    Ok(Exit::Done)
}
