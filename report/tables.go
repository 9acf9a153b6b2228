package report

import (
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/resalign/resalign/audit"
)

// MarkdownTable lists the rows for a document: model, fine-tuning, steps, seed if there are several, both rates in
// percent with their 95 % Wilson intervals and numbers of pictures, the harmful MSE and the cost if they were measured.
// Order and labels are those of Page.
func MarkdownTable(rows []audit.Row, order []string, labels map[string]string) string {
	head, right, body := tableText(rows, order, labels)
	var b strings.Builder
	write := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	write(head)
	rule := make([]string, len(head))
	for i := range head {
		if rule[i] = "---"; right[i] {
			rule[i] = "--:"
		}
	}
	write(rule)
	// What would end a cell or be read as markup is written so that it is not.
	escape := strings.NewReplacer("\\", "\\\\", "|", "\\|", "\n", " ", "\r", " ", "<", "&lt;", "*", "\\*", "_", "\\_", "`", "\\`")
	for _, line := range body {
		escaped := make([]string, len(line))
		for i, text := range line {
			escaped[i] = escape.Replace(text)
		}
		write(escaped)
	}
	return b.String()
}

// TextTable lists the same in aligned columns for a terminal.
func TextTable(rows []audit.Row, order []string, labels map[string]string) string {
	return aligned(tableText(rows, order, labels))
}

// aligned writes a table in columns as wide as they have to be.
func aligned(head []string, right []bool, body [][]string) string {
	width := make([]int, len(head))
	for _, line := range append([][]string{head}, body...) {
		for i, text := range line {
			width[i] = max(width[i], utf8.RuneCountInString(text))
		}
	}
	var b strings.Builder
	write := func(line []string) {
		var row strings.Builder
		for i, text := range line {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(text))
			if i > 0 {
				row.WriteString("  ")
			}
			if right[i] {
				row.WriteString(pad + text)
			} else {
				row.WriteString(text + pad)
			}
		}
		b.WriteString(strings.TrimRight(row.String(), " ") + "\n")
	}
	write(head)
	rule := make([]string, len(head))
	for i := range head {
		rule[i] = strings.Repeat("─", width[i])
	}
	write(rule)
	for _, line := range body {
		write(line)
	}
	return b.String()
}

// tableText is the table as text, with which columns are aligned to the right.
func tableText(rows []audit.Row, order []string, labels map[string]string) (head []string, right []bool, body [][]string) {
	v := &viewer{cells: arrange(rows, order, labels)}
	type column struct {
		name  string
		right bool
		text  func(audit.Row, line) string
	}
	rate := func(r rateText) string {
		if !r.Measured {
			return "–"
		}
		return r.Value + " " + r.Interval
	}
	orDash := func(text string) string {
		if text == "" {
			return "–"
		}
		return text
	}
	columns := []column{
		{"model", false, func(_ audit.Row, l line) string { return l.Model }},
		{"fine-tuning", false, func(_ audit.Row, l line) string { return l.Adaptation }},
		{"steps", true, func(_ audit.Row, l line) string { return l.Steps }},
	}
	if v.seeds > 1 {
		columns = append(columns, column{"seed", true, func(_ audit.Row, l line) string { return l.Seed }})
	}
	columns = append(columns,
		column{"IP %", true, func(_ audit.Row, l line) string { return rate(l.IP) }},
		column{"n", true, func(r audit.Row, _ line) string { return strconv.Itoa(r.IP.N) }},
		column{"benign %", true, func(_ audit.Row, l line) string { return rate(l.Benign) }},
		column{"n", true, func(r audit.Row, _ line) string { return strconv.Itoa(r.Benign.N) }},
	)
	sorted := v.sorted()
	measured := func(of func(audit.Row) float64) bool {
		for _, r := range sorted {
			if of(r) != 0 {
				return true
			}
		}
		return false
	}
	if measured(func(r audit.Row) float64 { return r.HarmMSE }) {
		columns = append(columns, column{"harmful MSE", true, func(_ audit.Row, l line) string { return orDash(l.MSE) }})
	}
	if measured(func(r audit.Row) float64 { return r.Gradients }) {
		columns = append(columns, column{"gradients", true, func(_ audit.Row, l line) string { return orDash(l.Cost) }})
	}
	for _, c := range columns {
		head, right = append(head, c.name), append(right, c.right)
	}
	for _, r := range sorted {
		l := v.line(r)
		var texts []string
		for _, c := range columns {
			texts = append(texts, oneLine(c.text(r, l)))
		}
		body = append(body, texts)
	}
	return head, right, body
}

// oneLine keeps a name from breaking a table, and a terminal from taking it for commands.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return ' '
		}
		return r
	}, s)
}
