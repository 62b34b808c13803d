//! Tables for people: aligned columns, printed page by page.

use super::terminal::{Style, printable};

/// The space between two columns.
const GAP: &str = "  ";

/// The most characters of a cell. What is longer is cut.
const CELL_CHARS_MAX: usize = 60;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) side: Side,
}

/// The side at which a column is flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// A row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cells: Vec<String>,
    /// Whether the row deserves attention.
    pub(super) is_alarming: bool,
}

/// A table whose rows come in pages. A column never becomes narrower than it was on an earlier page.
#[derive(Debug)]
pub(super) struct Table<'a> {
    columns: &'a [Column],
    widths: Vec<usize>,
    has_header: bool,
}

impl<'a> Table<'a> {
    pub(super) fn new(columns: &'a [Column]) -> Self {
        let widths = columns.iter().map(|column| column.title.chars().count()).collect();
        Self { columns, widths, has_header: false }
    }

    /// Formats a page of rows, the first one with the header. Characters that could control a terminal
    /// are shown as escapes.
    pub(super) fn page(&mut self, mut rows: Vec<Row>, style: Style) -> String {
        for row in &mut rows {
            row.cells.iter_mut().for_each(|cell| *cell = shown(cell));
            for (width, cell) in self.widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        if !self.has_header {
            self.has_header = true;
            let titles: Vec<_> =
                self.columns.iter().map(|column| column.title.to_owned()).collect();
            text.push_str(&style.bold(&self.line(&titles)));
            text.push('\n');
        }
        for row in &rows {
            let line = self.line(&row.cells);
            text.push_str(&if row.is_alarming { style.red(&line) } else { line });
            text.push('\n');
        }
        text
    }

    fn line(&self, cells: &[String]) -> String {
        let cells = self.columns.iter().zip(&self.widths).zip(cells);
        let cells = cells.map(|((column, &width), cell)| match column.side {
            Side::Left => format!("{cell:<width$}"),
            Side::Right => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    }
}

fn shown(cell: &str) -> String {
    let cell = printable(cell);
    match cell.char_indices().nth(CELL_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 2] = [
        Column { title: "CHANNEL", side: Side::Left },
        Column { title: "CLIENTS", side: Side::Right },
    ];

    fn row(cells: [&str; 2]) -> Row {
        Row { cells: cells.map(str::to_owned).to_vec(), is_alarming: false }
    }

    #[test]
    fn columns_are_aligned_over_pages() {
        let mut table = Table::new(&COLUMNS);
        let page = table.page(vec![row(["news", "12,345,678"]), row(["a", "1"])], Style::Plain);
        assert_eq!(page, "CHANNEL     CLIENTS\nnews     12,345,678\na                 1\n");
        let page = table.page(vec![row(["b", "2"])], Style::Plain);
        assert_eq!(page, "b                 2\n");
    }

    #[test]
    fn a_table_without_rows_has_its_header() {
        assert_eq!(Table::new(&COLUMNS).page(Vec::new(), Style::Plain), "CHANNEL  CLIENTS\n");
    }

    #[test]
    fn a_name_can_neither_control_the_terminal_nor_fill_it() {
        let long = "x".repeat(100);
        let page = Table::new(&COLUMNS).page(vec![row(["\u{1b}[2J", &long])], Style::Plain);
        assert!(page.contains("\n\\u{1b}[2J"), "{page}");
        assert!(page.ends_with(&format!("  {}…\n", &long[..60])), "{page}");
    }

    #[test]
    fn the_header_and_alarming_rows_are_emphasised() {
        let alarming = Row { is_alarming: true, ..row(["a", "1"]) };
        let page = Table::new(&COLUMNS).page(vec![alarming], Style::Coloured);
        let expected = "\u{1b}[1mCHANNEL  CLIENTS\u{1b}[0m\n\u{1b}[31ma              1\u{1b}[0m\n";
        assert_eq!(page, expected);
    }
}
