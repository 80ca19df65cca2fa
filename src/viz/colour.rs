//! From cells to colours.

use super::figure::Cell;

/// Red, green, blue, in sRGB.
pub(super) type Rgb = [u8; 3];

/// Far from every colour of the scale, also for those who do not tell red from green: viridis has no red and no grey.
pub(super) const NAN: Rgb = [230, 25, 75];
pub(super) const MASKED: Rgb = [222, 222, 222];

/// The scale at `t` from 0 to 1, in 256 steps; what lies outside has the colour of the nearer end.
pub(super) fn scale(t: f32) -> Rgb {
    let colour = colorous::VIRIDIS.eval_continuous(f64::from(t.clamp(0.0, 1.0)));
    [colour.r, colour.g, colour.b]
}

/// The colour of a cell where the scale ends at `upper`.
pub(super) fn of_cell(cell: Cell, upper: f32) -> Rgb {
    match cell {
        Cell::Value(value) => scale(value / upper),
        Cell::Nan => NAN,
        Cell::Masked => MASKED,
    }
}

/// Black or white, whichever is easier to read on `background` (luma of ITU-R BT.601).
pub(super) fn ink_on(background: Rgb) -> Rgb {
    let [red, green, blue] = background.map(u32::from);
    if 299 * red + 587 * green + 114 * blue > 128_000 { [0; 3] } else { [255; 3] }
}

/// As SVG writes it.
pub(super) fn hex([red, green, blue]: Rgb) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}
