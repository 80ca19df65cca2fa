//! PNG: it decodes, and its pixels are those of the SVG.

use crate::page::Page;
use crate::{TOKENS, map, values, view};
use lucid_attention::Mask;
use lucid_attention::viz::{EntropyMap, HeatMap, Picture};
use std::io::Cursor;

struct Image {
    width: usize,
    height: usize,
    /// `[height, width]` of red, green, blue, opacity.
    pixels: Vec<[u8; 4]>,
}

fn decode(bytes: &[u8]) -> Image {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("a PNG");
    let mut data = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut data).expect("pixels");
    assert_eq!((frame.color_type, frame.bit_depth), (png::ColorType::Rgba, png::BitDepth::Eight));
    let pixels = data.as_chunks().0.to_vec();
    Image { width: frame.width as usize, height: frame.height as usize, pixels }
}

/// Corners and middle of every cell have its colour exactly; all around is white.
fn assert_same(picture: &Picture, scale: u32) -> Image {
    let page = Page::read(picture);
    let image = decode(&picture.png(scale).unwrap());
    let scale = scale as usize;
    assert_eq!([image.width, image.height], page.size.map(|side| side * scale));
    let at = |x: usize, y: usize| image.pixels[y * image.width + x];
    assert_eq!(at(0, 0), [255; 4]);
    assert_eq!(at(image.width - 1, image.height - 1), [255; 4]);
    assert!(image.pixels.iter().all(|pixel| pixel[3] == 255), "opaque");
    for panel in &page.panels {
        for square in panel.squares.iter().flatten() {
            let [red, green, blue] =
                [1, 3, 5].map(|at| u8::from_str_radix(&square.colour[at..at + 2], 16).expect("#rrggbb"));
            let [left, top] = [square.x * scale, square.y * scale];
            let [right, bottom] = [left + square.width * scale - 1, top + square.height * scale - 1];
            for (x, y) in
                [(left, top), (right, bottom), (left, bottom), ((left + right) / 2, (top + bottom) / 2)]
            {
                assert_eq!(at(x, y), [red, green, blue, 255], "{square:?} at {x}, {y}");
            }
        }
    }
    image
}

#[test]
fn pixels_have_the_colours_of_cells() {
    let mut numbers = values([1, 1, 8, 8]);
    numbers[8] = f32::NAN;
    let one = map(&numbers, 8, 8).tokens(&TOKENS).mask(Mask::causal()).title("one").draw().unwrap();
    assert_same(&one, 1);
    assert_same(&one, 3);
    let many = values([1, 6, 100, 70]);
    assert_same(&HeatMap::new(view(&many, [1, 6, 100, 70])).draw().unwrap(), 2);
    let narrow = values([1, 1, 2, 3000]);
    assert_same(&map(&narrow, 2, 3000).max_cells(2048).draw().unwrap(), 1);
}

/// Letters are drawn, of a font that the machine need not have: every label of the SVG leaves dark pixels.
#[test]
fn text_is_there() {
    let numbers = values([1, 1, 8, 8]);
    let picture = map(&numbers, 8, 8).tokens(&TOKENS).title("Überschrift 😀").draw().unwrap();
    let (page, image) = (Page::read(&picture), assert_same(&picture, 2));
    for words in page.words.iter().filter(|words| !words.text.is_empty()) {
        let [left, top, right, bottom] = words.bounds.map(|side| (side * 2.0) as usize);
        let rows = top..bottom;
        let pixels = rows.flat_map(|y| image.pixels[y * image.width + left..y * image.width + right].iter());
        let dark = pixels.filter(|pixel| pixel[..3].iter().all(|&part| part < 140)).count();
        assert!(dark > 4 * words.text.chars().count(), "{words:?} has {dark} dark pixels");
    }
}

#[test]
fn numbers_are_readable_on_their_cells() {
    let entropy = [0.0, 1.0, 2.0, 3.0];
    let picture = EntropyMap::new(&entropy, [1, 4]).draw().unwrap();
    let (page, image) = (Page::read(&picture), decode(&picture.png(2).unwrap()));
    for square in page.panels[0].squares.iter().flatten() {
        let luma = |pixel: &[u8; 4]| pixel[..3].iter().map(|&part| i32::from(part)).sum::<i32>() / 3;
        let rows = square.y * 2..(square.y + square.height) * 2;
        let columns = square.x * 2..(square.x + square.width) * 2;
        let inside = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
        let luma: Vec<_> = inside.map(|(x, y)| luma(&image.pixels[y * image.width + x])).collect();
        let contrast = luma.iter().max().unwrap() - luma.iter().min().unwrap();
        assert!(contrast > 90, "{square:?}: {contrast}");
    }
}

#[test]
fn bytes_are_the_same_twice() {
    let numbers = values([1, 4, 30, 50]);
    let picture = HeatMap::new(view(&numbers, [1, 4, 30, 50])).title("twice").draw().unwrap();
    assert_eq!(picture.png(2).unwrap(), picture.png(2).unwrap());
}

#[test]
fn files_are_what_their_names_say() {
    let folder = std::env::temp_dir().join(format!("lucid-attention-viz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let numbers = values([1, 1, 4, 4]);
    let picture = map(&numbers, 4, 4).draw().unwrap();
    picture.save(folder.join("a.svg")).unwrap();
    picture.save(folder.join("a.PNG")).unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("a.svg")).unwrap(), picture.svg());
    assert_eq!(std::fs::read(folder.join("a.PNG")).unwrap(), picture.png(2).unwrap());
    for name in ["a.gif", "a"] {
        let error = picture.save(folder.join(name)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().ends_with("expected a name that ends in .svg or .png"), "{error}");
    }
    let missing = picture.save(folder.join("no").join("a.svg")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("a.svg: "), "{missing}");
    std::fs::remove_dir_all(&folder).unwrap();
}
