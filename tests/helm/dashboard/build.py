"""The chart's Grafana dashboard: made of its panels with Grafana's own builders, by ``make pages``."""

import json
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders.bargauge import Panel as BarGauge
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueGraphMode,
    SortOrder,
    TooltipDisplayMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from tests.helm.dashboard.now import OVERVIEW, WHERE
from tests.helm.dashboard.over_time import ADDRESSES, DAEMONS, REQUESTS, STORE
from tests.helm.dashboard.panel import Panel

FILE = Path(__file__).resolve().parent.parent.parent.parent / "helm" / "ipamd" / "files" / "dashboard.json"
ROWS = {
    "All nodes": OVERVIEW,
    "Which nodes": WHERE,
    "Requests": REQUESTS,
    "Addresses": ADDRESSES,
    "Store": STORE,
    "Daemons": DAEMONS,
}
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def text() -> str:
    """The dashboard as it is kept."""
    dashboard = (
        Dashboard("ipamd")
        .uid("ipamd")
        .tags(["ipam", "kubernetes"])
        .editable()
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").type("prometheus"))
        .with_variable(_choice("instance", "label_values(ipamd_ready, instance)"))
        .with_variable(_choice("pool", "label_values(ipamd_pool_addresses, pool)"))
    )
    numbers = count(1)
    for title, panels in ROWS.items():
        dashboard.with_row(Row(title).id(next(numbers)))
        for panel in panels:
            dashboard.with_panel(_built(panel).id(next(numbers)))
    return json.dumps(dashboard.build(), cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


def _choice(name: str, query: str) -> QueryVariable:
    """A variable that chooses among what there is; all of it to begin with."""
    return (
        QueryVariable(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(multi=True)
        .include_all(include_all=True)
        .all_value(".*")
        .current(VariableOption(text=["All"], value=["$__all"]))
    )


def _built(panel: Panel) -> Stat | BarGauge | TimeSeries:
    """The panel with its queries: of now only, unless it shows what happened over time."""
    built = _drawn(panel)
    built.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE).span(panel.width).height(7)
    if panel.nothing:
        built.no_value(panel.nothing)
    for letter, (expression, legend) in zip("ABCDEFGH", panel.queries, strict=False):
        query = Dataquery().ref_id(letter).expr(expression).legend_format(legend)
        built.with_target(query.range() if panel.kind == "timeseries" else query.instant())
    return built


def _drawn(panel: Panel) -> Stat | BarGauge | TimeSeries:
    """An empty panel of its kind."""
    if panel.kind == "timeseries":
        return (
            TimeSeries().min(0).tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        )
    last = ReduceDataOptions().calcs(["lastNotNull"])
    if panel.kind == "bargauge":
        bars = BarGauge().min(0).orientation(VizOrientation.HORIZONTAL).display_mode(BarGaugeDisplayMode.BASIC)
        return bars.reduce_options(last).thresholds(_colours(panel))
    return Stat().reduce_options(last).graph_mode(BigValueGraphMode.NONE).thresholds(_colours(panel))


def _colours(panel: Panel) -> ThresholdsConfig:
    """Red from one on where a number is trouble; a pool by how full it is, as the alerts have it."""
    steps = [Threshold(value=None, color="green" if panel.kind == "trouble" else "text")]
    if panel.kind == "trouble":
        steps.append(Threshold(value=1, color="red"))
    elif panel.unit == "percentunit":
        steps = [Threshold(None, "green"), Threshold(0.8, "orange"), Threshold(0.95, "red")]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
