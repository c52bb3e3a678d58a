//! ROS parameters to [`Settings`].

use std::sync::{Arc, Mutex, PoisonError};

use r2r::indexmap::IndexMap;
use r2r::{Parameter, ParameterValue, RosParams};

use crate::node::settings::{SPECS, Settings, SettingsError, Value};

/// Parameters that ROS gives to every node.
const COMMON: [&str; 2] = ["use_sim_time", "start_type_description_service"];

/// Reads what was given on the command line and in parameter files. A wrong type or value is an
/// error, an unknown name (a file for several nodes may have some) is told with what was likely
/// meant.
pub fn read(given: &IndexMap<String, Parameter>) -> Result<Settings, SettingsError> {
    let settings = read_some(given, &[])?;
    settings.check()?;
    Ok(settings)
}

/// As [`read`], for a node that needs only some of the settings and has parameters of its own besides.
pub fn read_some(
    given: &IndexMap<String, Parameter>,
    own: &[&str],
) -> Result<Settings, SettingsError> {
    let mut settings = Settings::default();
    for (name, parameter) in given {
        let known = |names: &[&str]| names.contains(&name.as_str());
        if known(&COMMON) || known(own) || name.starts_with("qos_overrides.") {
            continue;
        }
        let Some(value) = value(&parameter.value) else {
            if settings.get(name).is_some() {
                return Err(SettingsError::BadValue {
                    name: name.clone(),
                    reason: format!("is a {}", parameter.value.type_name()),
                });
            }
            tracing::warn!("unknown parameter '{name}' is ignored");
            continue;
        };
        match settings.set(name, &value) {
            Err(error @ SettingsError::Unknown { .. }) => tracing::warn!("{error}; it is ignored"),
            result => result?,
        }
    }
    Ok(settings)
}

pub fn value(value: &ParameterValue) -> Option<Value> {
    Some(match value {
        ParameterValue::Bool(flag) => Value::Bool(*flag),
        ParameterValue::Integer(n) => Value::Integer(*n),
        ParameterValue::Double(x) => Value::Double(*x),
        ParameterValue::String(text) => Value::Text(text.clone()),
        ParameterValue::DoubleArray(numbers) => Value::Numbers(numbers.clone()),
        ParameterValue::IntegerArray(numbers) => {
            Value::Numbers(numbers.iter().map(|n| *n as f64).collect())
        }
        _ => return None,
    })
}

fn ros_value(value: Value) -> ParameterValue {
    match value {
        Value::Bool(flag) => ParameterValue::Bool(flag),
        Value::Integer(n) => ParameterValue::Integer(n),
        Value::Double(x) => ParameterValue::Double(x),
        Value::Text(text) => ParameterValue::String(text),
        Value::Numbers(numbers) => ParameterValue::DoubleArray(numbers),
    }
}

/// The settings as r2r's parameter services see them.
pub struct Live(pub Arc<Mutex<Settings>>);

impl Live {
    fn settings(&self) -> std::sync::MutexGuard<'_, Settings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, name: &str, value: &ParameterValue) -> Result<Settings, r2r::Error> {
        let refuse = |reason: String| r2r::Error::ParameterValueConv {
            name: name.to_owned(),
            msg: reason,
        };
        let value = self::value(value)
            .ok_or_else(|| refuse(format!("a {} is of no use here", value.type_name())))?;
        let mut settings = self.settings().clone();
        settings
            .set_live(name, &value)
            .and_then(|()| settings.check())
            .map_err(|error| refuse(error.to_string()))?;
        Ok(settings)
    }
}

impl RosParams for Live {
    fn register_parameters(
        &mut self,
        _prefix: &str,
        _parameter: Option<Parameter>,
        parameters: &mut IndexMap<String, Parameter>,
    ) -> r2r::Result<()> {
        let settings = self.settings();
        parameters.retain(|name, _| COMMON.contains(&name.as_str()));
        for spec in SPECS {
            if let Some(value) = settings.get(spec.name) {
                let parameter = Parameter {
                    value: ros_value(value),
                    description: spec.description,
                };
                parameters.insert(spec.name.to_owned(), parameter);
            }
        }
        Ok(())
    }

    fn get_parameter(&mut self, name: &str) -> r2r::Result<ParameterValue> {
        self.settings()
            .get(name)
            .map(ros_value)
            .ok_or_else(|| r2r::Error::InvalidParameterName { name: name.into() })
    }

    fn set_parameter(&mut self, name: &str, value: &ParameterValue) -> r2r::Result<()> {
        let changed = self.changed(name, value)?;
        *self.settings() = changed;
        Ok(())
    }

    fn check_parameter(&self, name: &str, value: &ParameterValue) -> r2r::Result<()> {
        self.changed(name, value).map(drop)
    }
}
