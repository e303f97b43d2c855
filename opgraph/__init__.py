"""opgraph: LLM inference on multi-chip platforms, simulated operator by operator.

The public names load what they need when they are first used, so that ``opgraph --help`` does
not wait for NumPy.
"""

from typing import TYPE_CHECKING

from opgraph.lazy import names_of

if TYPE_CHECKING:
    from opgraph.cost import Calibrated, CostModel, Efficiency, Host, Roofline
    from opgraph.explore import Search, best_plans
    from opgraph.graph import Block, Builder, Graph, GraphError
    from opgraph.memory import Footprint, Reserve
    from opgraph.model import Model
    from opgraph.offload import Offload
    from opgraph.operator import Operator, Work
    from opgraph.passes import shard
    from opgraph.plan import Plan
    from opgraph.report import Report
    from opgraph.simulation import simulate
    from opgraph.sizes import Sizes
    from opgraph.tensor import Format, Tensor
    from opgraph.timeline import Event, Timeline
    from opgraph.workload import Workload

_HOME = {
    "cost": ("Calibrated", "CostModel", "Efficiency", "Host", "Roofline"),
    "explore": ("Search", "best_plans"),
    "graph": ("Block", "Builder", "Graph", "GraphError"),
    "memory": ("Footprint", "Reserve"),
    "model": ("Model",),
    "offload": ("Offload",),
    "operator": ("Operator", "Work"),
    "passes": ("shard",),
    "plan": ("Plan",),
    "report": ("Report",),
    "simulation": ("simulate",),
    "sizes": ("Sizes",),
    "tensor": ("Format", "Tensor"),
    "timeline": ("Event", "Timeline"),
    "workload": ("Workload",),
}
__getattr__, __dir__ = names_of(__name__, _HOME)

__all__ = [
    "Block",
    "Builder",
    "Calibrated",
    "CostModel",
    "Efficiency",
    "Event",
    "Footprint",
    "Format",
    "Graph",
    "GraphError",
    "Host",
    "Model",
    "Offload",
    "Operator",
    "Plan",
    "Report",
    "Reserve",
    "Roofline",
    "Search",
    "Sizes",
    "Tensor",
    "Timeline",
    "Work",
    "Workload",
    "best_plans",
    "shard",
    "simulate",
]
