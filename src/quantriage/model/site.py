"""The map of a model: its blocks and the sites in them that can be quantized."""

from dataclasses import dataclass

from torch import Tensor, nn

from quantriage.records.types import END_CATEGORIES, SiteInfo


@dataclass(frozen=True)
class Site:
    """One quantizable weight [out, in]: a whole parameter, or an expert's slice, or a row range of one.

    name: module name in the checkpoint (the tensor is `name` + ".weight").
    parameter: name of the parameter within its block; expert, rows: which part of it.
    transposed: the parameter is stored [in, out] (Conv1D).
    input_group: sites of a block with the same number read the same input tensor.
    """

    name: str
    block: int
    parameter: str
    expert: int | None
    rows: tuple[int, int] | None
    transposed: bool
    shape: tuple[int, int]
    category: str
    input_group: int
    fused_with: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name inside the block, for tables: `mlp.down_proj`."""
        marker = f".{self.block}."
        return self.name.split(marker, 1)[1] if marker in self.name else self.name

    def info(self) -> SiteInfo:
        """The site as a record."""
        return SiteInfo(
            name=self.name,
            block=self.block,
            module=self.module,
            category=self.category,
            shape=self.shape,
            fused_with=self.fused_with,
        )


@dataclass(frozen=True)
class End:
    """A weight [vocabulary, width] outside the blocks: the embedding, the head, or, tied, one that is both.

    place: the block beside it, in tables.
    """

    name: str
    shape: tuple[int, int]
    embeds: bool
    projects: bool
    place: int

    @property
    def category(self) -> str:
        """As the records call it; one of END_CATEGORIES."""
        return END_CATEGORIES[self.embeds + 2 * self.projects - 1]

    def info(self) -> SiteInfo:
        """The end as a record."""
        return SiteInfo(
            name=self.name, block=self.place, module=self.name, category=self.category, shape=self.shape
        )


@dataclass(frozen=True)
class ModelMap:
    """What running the model showed: how many blocks, and every site in checkpoint terms, in run order."""

    blocks: int
    sites: tuple[Site, ...]
    ends: tuple[End, ...] = ()

    @property
    def parts(self) -> tuple[Site | End, ...]:
        """Sites, then ends."""
        return (*self.sites, *self.ends)

    def in_block(self, index: int) -> tuple[Site, ...]:
        """Sites of one block."""
        return tuple(site for site in self.sites if site.block == index)

    def by_name(self) -> dict[str, Site]:
        """Sites by checkpoint module name."""
        return {site.name: site for site in self.sites}

    def infos(self) -> list[SiteInfo]:
        """Sites and ends as records, ends last; a target says whether it takes ends quantized."""
        return [part.info() for part in self.parts]

    def bank_block(self, name: str) -> int | None:
        """Which file of a bank holds the candidates of a site (its block's) or an end (None)."""
        sites = self.by_name()
        return sites[name].block if name in sites else None


def read_site(block: nn.Module, site: Site) -> Tensor:
    """A view of the site's weight, [out, in], in the block's own memory."""
    return part_of(block.get_parameter(site.parameter).detach(), site)


def part_of(weight: Tensor, site: Site) -> Tensor:
    """The view [out, in] of a whole parameter, or of its gradient, that is the site's."""
    if site.expert is not None:
        weight = weight[site.expert]
    if site.transposed:
        weight = weight.T
    if site.rows is not None:
        weight = weight[site.rows[0] : site.rows[1]]
    return weight


def write_site(block: nn.Module, site: Site, weight: Tensor) -> None:
    """Replace the site's weight [out, in] inside the block, cast to the block's dtype."""
    view = read_site(block, site)
    if view.shape != weight.shape:
        raise ValueError(f"{site.name}: weight of shape {tuple(weight.shape)}, expected {tuple(view.shape)}")
    view.copy_(weight)
