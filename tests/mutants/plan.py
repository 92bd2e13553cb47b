"""The modules that hold the promises, each with the quick tests that must notice a fault in it."""

from __future__ import annotations

_OF_TILES = (
    "comparing/test_tiles.py",
    "comparing/test_matrix.py",
    "catalogue/test_partial_reads.py",
    "dna/test_moments.py::test_the_matrix_has_fd_if_both_datasets_have_layer_gaussians",
    "dna/test_moments.py::test_a_tile_that_is_no_square_has_the_same_fd",
    "dna/test_moments.py::test_gaussians_of_two_images_have_distances_and_those_of_one_have_none",
)
"""What is run for the modules of a comparison's tiles."""

MODULES: dict[str, tuple[str, ...]] = {
    "catalogue/commit.py": (
        "catalogue/test_commit.py",
        "catalogue/test_commit_log.py",
        "catalogue/test_catalogue.py",
        "system/test_golden.py",
        "building/test_erasing.py::test_tags_rollback_and_numbers_go_on",
        "building/test_erasing.py::test_a_version_that_shares_a_list_keeps_its_dna",
    ),
    "catalogue/commit_log.py": (
        "catalogue/test_commit_log.py",
        "catalogue/test_catalogue.py",
        "catalogue/test_history.py",
        "building/test_erasing.py::test_tags_rollback_and_numbers_go_on",
        "building/test_erasing.py::test_a_version_that_shares_a_list_keeps_its_dna",
    ),
    "catalogue/garbage_collection.py": (
        "catalogue/test_cells_kept.py",
        "catalogue/test_entries_kept.py",
        "catalogue/test_garbage_collection.py",
        "catalogue/test_history.py",
        "catalogue/test_tasks.py",
        "comparing/test_tiles.py::test_gc_removes_abandoned_tiles",
    ),
    "catalogue/kept_versions.py": (
        "catalogue/test_entries_kept.py",
        "catalogue/test_kept_versions.py",
        "catalogue/test_undoing.py",
        "building/test_erasing.py::test_tags_rollback_and_numbers_go_on",
        "building/test_erasing.py::test_a_version_that_shares_a_list_keeps_its_dna",
        "building/test_erasing.py::test_a_removed_version_whose_place_a_newer_one_has_is_no_obstacle",
        "building/test_erasing.py::test_a_collection_keeps_both_manifests_of_the_same_images",
    ),
    "catalogue/partial_sums.py": ("catalogue/test_tasks.py", "catalogue/test_verification.py"),
    "catalogue/undoing.py": (
        "catalogue/test_entries_kept.py",
        "catalogue/test_undoing.py",
        "building/test_erasing.py::test_tags_rollback_and_numbers_go_on",
        "building/test_erasing.py::test_a_version_that_shares_a_list_keeps_its_dna",
    ),
    "catalogue/version_checks.py": (
        "catalogue/test_verification.py",
        "catalogue/test_history.py",
        "building/test_labels.py::test_verify_finds_a_wrong_part",
        "building/test_labels.py::test_a_column_of_a_table_makes_parts_too",
        "building/test_labels.py::test_a_lost_file_of_a_part_is_made_again_and_gc_keeps_the_partials",
        "dna/test_exemplars.py::test_a_build_names_the_images_of_the_largest_means",
        "dna/test_exemplars.py::test_wrong_exemplars_are_refused_by_name",
        "dna/test_exemplars.py::test_exemplars_of_the_first_layer_alone_are_checked",
        "dna/test_exemplars.py::test_exemplars_that_no_partial_names_are_found",
        "dna/test_moments.py::test_verify_recomputes_the_scatter_and_finds_a_change",
        "dna/test_moments.py::test_verify_finds_a_partial_with_another_scatter",
        "interop/test_reference_files.py::test_verify_and_gc_work_on_imported_datasets",
        "interop/test_reference_files.py::test_our_own_exports_state_their_spec",
        "interop/test_reference_files.py::test_an_import_assumes_the_spec_of_the_reference",
    ),
    "catalogue/verification.py": (
        "catalogue/test_verification.py",
        "catalogue/test_history.py",
        "catalogue/test_tasks.py",
        "building/test_labels.py",
        "building/test_erasing.py::test_a_removed_version_whose_place_a_newer_one_has_is_no_obstacle",
        "building/test_erasing.py::test_a_removed_version_whose_dna_an_erasure_makes_again_is_no_fault",
        "building/test_erasing.py::test_a_collection_keeps_both_manifests_of_the_same_images",
    ),
    "building/storing.py": ("building/test_storing.py", "catalogue/test_entries_kept.py"),
    "counting/activation_counts.py": ("counting/test_shard_truth.py",),
    "counting/cells.py": ("counting/test_cells.py",),
    "counting/reduction.py": ("counting/test_reduction.py",),
    "counting/shard.py": ("counting/test_shard_truth.py", "counting/test_cells.py"),
    "comparing/comparison_job.py": _OF_TILES,
    "comparing/layer_cache.py": (*_OF_TILES, "comparing/test_fold_points.py"),
    "comparing/tile_files.py": _OF_TILES,
    "comparing/tile_sums.py": _OF_TILES,
    "comparing/tiles.py": _OF_TILES,
    "dna/sealed.py": ("dna/test_sealed.py",),
    "errors.py": (
        "storage/test_secrets.py::test_secrets_in_texts_are_redacted",
        "storage/test_secrets.py::test_values_that_are_sent_in_queries_are_taken_out",
        "storage/test_storage.py",
        "storage/test_uris.py",
        "system/test_errors.py",
    ),
    "storage/uris.py": ("storage/test_uris.py",),
}
"""Files of `pipeline/`, and what to run of `tests/`: files, or single tests."""

ONLY: dict[str, tuple[str, ...]] = {
    "comparing/comparison_job.py": tuple(
        f"Job.{name}" for name in ("key", "method", "columns", "planes", "weights")
    ),
    "comparing/layer_cache.py": tuple(
        f"TileCache.{name}"
        for name in ("keep_only", "layer_data", "_load", "_load.load", "_layer", "_points", "_open")
    ),
    "comparing/tile_files.py": ("present", "run", "read_tile", "encode_tile", "decode_tile"),
    "comparing/tile_sums.py": (
        *("compute", "_load", "_estimates", "_nfd", "_fd"),
        *(f"_TileLayer.{name}" for name in ("empty", "zeros", "add", "write", "fill")),
    ),
    "comparing/tiles.py": (
        *(f"Tile.{name}" for name in ("square", "pairs", "steps", "digest", "uri")),
        *("_runs", "folder_of", "cut", "_even"),
    ),
    "counting/activation_counts.py": (
        *("count_batch", "count_batch.visit", "CpuCounts.adder", "CpuCounts.adder.add"),
        *("CpuCounts.read", "CpuCounts._of_this_thread"),
        *("GpuCounts.adder", "GpuCounts.adder.add"),
    ),
    "counting/shard.py": (
        *(f"Counter.{name}" for name in ("__init__", "count", "make", "close")),
        *(
            "Counter.count_each",
            "Counter.make.in_order",
            "Counter._cells",
            "Counter._pieces",
            "Counter._piece",
            "Counter._key_of",
            "Counter._counted",
            "Counter._counted.cell_at",
            "Counter._counted.by_cell",
        ),
        *("Counter._counted.observe", "Counter._counted.note", "Counter._made"),
        *(f"Counter._finished{name}" for name in ("", ".read", ".finish")),
        *("Counter._new_sum", "Counter._partial_of"),
        *("Counter._new_counts", "dna_of_counts", "Noted.add", "_joined", "_sum_of_cells"),
        *(
            f"_CellSum.{name}"
            for name in ("__post_init__", "fail", "add", "_take", "_add_up", "is_whole")
        ),
    ),
    "errors.py": ("module", "redact", "_shown", "looks_secret", "wrong_fields", "shortened"),
}
"""The functions of some modules that hold a promise, and that run without a GPU; `module` is what
lies outside of all."""

IN_FULL: tuple[str, ...] = (
    "building/storing.py",
    "counting/activation_counts.py",
    "counting/reduction.py",
    "dna/sealed.py",
    "errors.py",
    "storage/uris.py",
)
"""Modules of which every mutant was run, and every one that survived is explained. A sample is of
these alone: so a sample is refused only if the change at hand let a fault pass."""
