//! Levels that are not there.

use super::*;

#[test]
fn names_of_levels() {
    for name in ["", "AVX2", "avx2 ", "sse9"] {
        assert_error(Level::from_name(name), &UnknownLevel { name: name.to_owned() });
    }
    for level in Level::ALL {
        let result = level.check_available();
        let unavailable = LevelUnavailable { level: level.name() };
        assert_names_its_fields(&unavailable);
        if Level::available().all(|available| available != level) {
            let options = PlanOptions { level: Some(level), ..PlanOptions::default() };
            assert_error(result, &unavailable);
            assert_error(Plan::with_options(&Problem::new(1, 1, 1, 1), &options), &unavailable);
            assert_error(math::exp(level, &mut [1.0]), &unavailable);
        }
    }
}

/// The environment is read once per process, so that a wrong one needs a process of its own.
#[test]
fn a_forced_level_that_is_none() {
    let unavailable = Level::ALL.into_iter().filter(|level| !level.is_available()).map(Level::name);
    for name in ["sse9", ""].into_iter().chain(unavailable) {
        let child = crate::common::process::this_program()
            .args(["--exact", "levels::forced_level", "--ignored"])
            .env("LUCID_LEVEL", name)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && printed.contains("1 passed"), "{name}: {printed}");
    }
}

#[test]
#[ignore = "for a process that `a_forced_level_that_is_none` starts"]
fn forced_level() {
    let name = std::env::var("LUCID_LEVEL").unwrap_or_default();
    let Err(expected) = Level::from_name(&name).and_then(Level::check_available) else { return };
    if std::env::var_os("LUCID_LEVEL").is_none() {
        return;
    }
    assert_error(Level::detect(), &expected);
    assert_error(Plan::new(&Problem::new(1, 1, 1, 1)), &expected);
    assert_error(attention(&inputs()), &expected);
    let (mut out, mut lse) = ([UNTOUCHED; 144], [UNTOUCHED; ROWS]);
    let into = ViewMut::new(&mut out, OUT).unwrap();
    assert_error(merge(into, &mut lse, view(OUT), &NUMBERS[..ROWS]), &expected);
    assert!(untouched(&out) && untouched(&lse), "nothing is written");
}
