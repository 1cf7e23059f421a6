#include "report/chart.h"

#include <string.h>

#include "report/markup.h"
#include "report/plot.h"

void chart_write_swatch(const struct chart_line *line, bool area, FILE *stream)
{
    fputs("<svg class=\"swatch\" width=\"18\" height=\"10\">", stream);
    if (area)
        fprintf(stream, "<rect class=\"f%d\" x=\"3\" width=\"12\" height=\"10\" rx=\"2\"/>",
                line->colour);
    else
        fprintf(stream, "<path class=\"line s%d%s\" d=\"M1 5h16\"/>", line->colour,
                line->dashed ? " dash" : "");
    if (line->points)
        fprintf(stream, "<circle class=\"f%d\" cx=\"9\" cy=\"5\" r=\"3\"/>", line->colour);
    fputs("</svg>", stream);
}

static const char *x_title(const struct chart *chart)
{
    return chart->x == CHART_SECONDS ? "time since the start" : "step";
}

int chart_write_figure(const struct chart *chart, size_t columns, FILE *stream, struct error *error)
{
    struct plot plot;

    if (plot_open(&plot, chart, columns, chart->wide ? 280 : 190, stream, error) < 0)
        return -1;
    fprintf(stream, "<figure%s id=\"", chart->wide ? " class=\"wide\"" : "");
    markup_text(chart->name, stream);
    fputs("\">\n<figcaption><b>", stream);
    markup_text(chart->title, stream);
    fputs("</b> <span class=\"unit\">", stream);
    markup_printf(stream, "%s%sby %s%s", chart->unit, *chart->unit ? ", " : "",
                  chart->x == CHART_SECONDS ? "time" : "step",
                  plot.y.logarithmic ? ", logarithmic" : "");
    fputs("</span>", stream);
    if (chart->line_count > 1) {
        fputs("<div class=\"legend\">", stream);
        for (size_t i = 0; i < chart->line_count; i++) {
            fputs("<span>", stream);
            chart_write_swatch(&chart->lines[i], chart->stacked, stream);
            markup_text(chart->lines[i].label, stream);
            fputs("</span> ", stream);
        }
        fputs("</div>", stream);
    }
    fprintf(stream, "</figcaption>\n<svg class=\"plot\" height=\"%d\" role=\"img\" aria-label=\"",
            plot.height);
    markup_text(chart->title, stream);
    fputs("\">", stream);
    plot_write(&plot);
    fputs("</svg>\n</figure>\n", stream);
    plot_close(&plot);
    return 0;
}

enum { SVG_WIDTH = 720, SVG_LEFT = 64, SVG_RIGHT = 24, SVG_BOTTOM = 48, SVG_PLOT = 240 };

/* Legends break into rows by a guess: letters of this size are about 6.5 wide, and seldom more. */
static int write_svg_legend(const struct chart *chart, int y, FILE *stream)
{
    double x = 20;

    if (chart->line_count < 2)
        return y;
    for (size_t i = 0; i < chart->line_count; i++) {
        double width = 24 + 7 * (double)strlen(chart->lines[i].label) + 16;

        if (x > 20 && x + width > SVG_WIDTH - 10) {
            x = 20;
            y += 20;
        }
        if (stream) {
            fprintf(stream, "<g transform=\"translate(%.0f %d)\">", x, y - 9);
            chart_write_swatch(&chart->lines[i], chart->stacked, stream);
            fputs("<text x=\"24\" y=\"9\">", stream);
            markup_text(chart->lines[i].label, stream);
            fputs("</text></g>\n", stream);
        }
        x += width;
    }
    return y + 22;
}

int chart_write_svg(const struct chart *chart, FILE *stream, struct error *error)
{
    int top = write_svg_legend(chart, 54, NULL) + 4, height = top + SVG_PLOT + SVG_BOTTOM;
    struct plot plot;

    if (plot_open(&plot, chart, CHART_COLUMNS, SVG_PLOT, stream, error) < 0)
        return -1;
    fprintf(stream,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "viewBox=\"0 0 %d %d\" role=\"img\" font-family=\"system-ui, sans-serif\" "
            "font-size=\"12\">\n<title>",
            SVG_WIDTH, height, SVG_WIDTH, height);
    markup_text(chart->title, stream);
    fputs("</title>\n<style>", stream);
    chart_write_style(stream);
    fprintf(stream,
            "</style>\n<rect class=\"paper\" width=\"%d\" height=\"%d\" rx=\"8\"/>\n"
            "<text class=\"title\" x=\"20\" y=\"30\">",
            SVG_WIDTH, height);
    markup_text(chart->title, stream);
    fprintf(stream, "</text><text class=\"end\" x=\"%d\" y=\"30\">", SVG_WIDTH - SVG_RIGHT);
    markup_printf(stream, "%s%s", chart->unit, plot.y.logarithmic ? ", logarithmic" : "");
    fputs("</text>\n", stream);
    write_svg_legend(chart, 54, stream);
    fprintf(stream,
            "<svg class=\"plot\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" "
            "overflow=\"visible\">",
            SVG_LEFT, top, SVG_WIDTH - SVG_LEFT - SVG_RIGHT, SVG_PLOT);
    plot_write(&plot);
    fprintf(stream, "</svg>\n<text class=\"middle\" x=\"%d\" y=\"%d\">%s</text>\n</svg>\n",
            SVG_LEFT + (SVG_WIDTH - SVG_LEFT - SVG_RIGHT) / 2, height - 12, x_title(chart));
    plot_close(&plot);
    return 0;
}

/* --- colours --------------------------------------------------------------------------------- */

/* Of curves: Okabe and Ito's palette, told apart by colour-blind eyes, the yellow left out and
 * others made lighter for the dark; the last is for what remains of a whole. */
static const struct {
    const char *light, *dark;
} palette[CHART_COLOURS + 1] = {
    {"#0072b2", "#56b4e9"}, {"#d55e00", "#ff8f4d"}, {"#009e73", "#2cc79a"},
    {"#b8478f", "#e59ccb"}, {"#e69f00", "#f2bd4b"}, {"#56b4e9", "#a6d8f7"},
    {"#5b4fa2", "#a99df0"}, {"#7a5c3e", "#c9a884"}, {"#b4bac4", "#5a6470"},
};

static void write_colours(bool dark, FILE *stream)
{
    for (int i = 0; i <= CHART_COLOURS; i++) {
        const char *colour = dark ? palette[i].dark : palette[i].light;

        fprintf(stream, ".s%d{stroke:%s}.f%d{fill:%s}\n", i, colour, i, colour);
    }
    fprintf(stream,
            "text{fill:%s}.title{fill:%s}.paper{fill:%s}.grid{stroke:%s}.axis{stroke:%s}"
            ".span{fill:%s}.mark{stroke:%s}.marked{fill:%s}.band:hover{fill:%s}.lost{fill:%s}\n",
            dark ? "#9aa4b0" : "#5f6874", dark ? "#e8ecf1" : "#1c2128",
            dark ? "#171b21" : "#ffffff", dark ? "#2a3038" : "#e8eaee",
            dark ? "#4a535e" : "#b9bfc8", dark ? "#2a3038" : "#eceef2",
            dark ? "#8a94a0" : "#7d8794", dark ? "#9aa4b0" : "#5f6874",
            dark ? "#ffffff14" : "#0000000d", dark ? "#ff7b72" : "#c01c28");
}

void chart_write_style(FILE *stream)
{
    fputs("path{fill:none;vector-effect:non-scaling-stroke}"
          ".line,.raw{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
          ".raw{stroke-width:1;opacity:.4}.faint{opacity:.28}.dash{stroke-dasharray:5 4}"
          ".mark{stroke-dasharray:2 3}"
          ".band{fill:none;pointer-events:all}.plot svg{overflow:visible}.plot "
          ".cut{overflow:hidden}.area{opacity:.85}"
          ".end{text-anchor:end}.middle{text-anchor:middle}"
          ".title{font-size:16px;font-weight:600}.lost{font-size:16px;font-weight:700}\n",
          stream);
    write_colours(false, stream);
    fputs("@media(prefers-color-scheme:dark){\n", stream);
    write_colours(true, stream);
    fputs("}\n", stream);
}
