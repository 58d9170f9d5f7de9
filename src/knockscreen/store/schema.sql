-- The ranking database of one run. Missing is NULL, never 0. No indexes: sort order is the index.
-- Signs: perturbed minus control; a positive program score moves cells toward the program.
-- Effects use small integer keys (tables *_by_*); the views of the same data carry the names.

create table runs (
    run varchar, created timestamp, schema_version integer, knockscreen_version varchar,
    seed bigint, simulated boolean, n_cells bigint, n_genes integer, n_targets integer,
    n_contexts integer, draws integer, store_digest varchar, config varchar, versions varchar
);
comment on table runs is 'The run this database was built from: one row';
comment on column runs.run is 'name of the run, as in results/<run>';
comment on column runs.created is 'when this database was built, UTC';
comment on column runs.schema_version is 'version of this schema; readers refuse another one';
comment on column runs.knockscreen_version is 'version of the package that built the database';
comment on column runs.seed is 'seed of training and sampling';
comment on column runs.simulated is 'true if the input cells are simulated, not measured';
comment on column runs.n_cells is 'cells in the training store, after QC';
comment on column runs.n_genes is 'genes on the panel';
comment on column runs.n_targets is 'knock-downs that were generated (status screened)';
comment on column runs.n_contexts is 'contexts that were generated, pooled ones not counted';
comment on column runs.draws is 'generated cells per knock-down and context; at most, where screen.tolerance is set';
comment on column runs.store_digest is 'SHA-256 of the training store, 16 hex digits; NULL if it has no manifest';
comment on column runs.config is 'settings as JSON text';
comment on column runs.versions is 'versions of Python and packages at the build, as JSON text';

create table genes (
    gene_key usmallint, gene varchar, gene_id varchar, in_panel boolean, is_hvg boolean,
    is_program boolean, is_target boolean, n_cells bigint, mean double, dispersion double
);
comment on table genes is 'Every gene of the input; effects exist for those on the panel';
comment on column genes.gene_key is 'number of the gene in this database, panel genes first';
comment on column genes.gene is 'gene symbol';
comment on column genes.gene_id is 'Ensembl id, or what the input has in its place';
comment on column genes.in_panel is 'true if the model sees the gene';
comment on column genes.is_hvg is 'true if chosen as highly variable';
comment on column genes.is_program is 'true if a gene of a program';
comment on column genes.is_target is 'true if knocked down in the input';
comment on column genes.n_cells is 'cells after QC in which the gene is detected';
comment on column genes.mean is 'log1p (natural log) of mean CP10k of training cells, batches averaged';
comment on column genes.dispersion is 'standardised dispersion of CP10k among genes of like mean; NULL if not computed';

create table targets (
    target_key usmallint, target_gene varchar, target_gene_id varchar, gene_key usmallint,
    evidence varchar, status varchar, status_reason varchar, n_cells bigint, n_guides integer, n_guides_kept integer,
    knockdown_status varchar, on_target_log2_fold_change double, baseline_expression double,
    known_regulator varchar, annotations map(varchar, varchar), neighbours varchar, objection varchar
);
comment on table targets is 'Every knock-down that was asked for or measured, screened or not';
comment on column targets.target_key is 'number of the target in this database, in order of target_gene_id';
comment on column targets.target_gene is 'symbol of the knocked-down gene';
comment on column targets.target_gene_id is 'Ensembl id of the knocked-down gene, or what the input has in its place';
comment on column targets.gene_key is 'the target as a gene of table genes; NULL if it is not among them';
comment on column targets.evidence is 'predicted_seen: in the training cells; predicted_unseen: never knocked down in training; NULL if not screened';
comment on column targets.status is 'screened, or why not: not_expressed, no_features (never knocked down, and no gene features), filtered, not_in_library, not_a_candidate';
comment on column targets.status_reason is 'why it was not screened, in words; NULL if it was';
comment on column targets.n_cells is 'measured cells with this knock-down after QC, all contexts; NULL if none';
comment on column targets.n_guides is 'guides of it with cells; NULL if the input names no guides, or none of it';
comment on column targets.n_guides_kept is 'of those, guides that QC kept';
comment on column targets.knockdown_status is 'does a guide lower its target: confirmed, inactive (none does), not_measurable (too little expressed, or too few cells), not_assessed (such as where qc.knockdown_test is off); NULL without guides';
comment on column targets.on_target_log2_fold_change is 'log2 fold change of its own transcript in the kept guides against control cells, mean over cells; NULL if it cannot be computed';
comment on column targets.baseline_expression is 'of the knocked-down gene: log1p (natural log) of mean CP10k of training cells; NULL if unknown';
comment on column targets.annotations is 'what the table of the setting annotations.file says of the gene (essential, druggable, ...): column name -> value; NULL if no table was given, or it does not name the gene';
comment on column targets.neighbours is 'genes of the input that start within annotations.neighbours_within bases, which a CRISPRi guide may silence too; NULL: none, or the table has no positions';
comment on column targets.objection is 'what of the table speaks against the knock-down: neighbours, and columns of annotations.against that say yes; NULL: nothing';
comment on column targets.known_regulator is 'programs of which it is a published regulator, a positive control; NULL if none';

create table guides (
    target_key usmallint, guide_id varchar, n_cells bigint, log2_fold_change double,
    p_value double, fdr double, status varchar
);
comment on table guides is 'The guides of each target and what they do to it, from QC; no rows if the input names none';
comment on column guides.target_key is 'see targets';
comment on column guides.guide_id is 'name of the guide';
comment on column guides.n_cells is 'cells with the guide, all contexts';
comment on column guides.log2_fold_change is 'log2 fold change of the target''s own transcript against control cells; negative = knocked down; NULL if not judged';
comment on column guides.p_value is 'Welch t-test of the target''s log1p CP10k, guide against control cells; NULL if not judged';
comment on column guides.fdr is 'Benjamini-Hochberg over guides; NULL if not judged';
comment on column guides.status is 'kept, inactive (does not lower its target, cells left out) or not_judged (kept)';

create table target_contexts (
    target_key usmallint, context varchar, n_cells bigint, status varchar
);
comment on table target_contexts is 'What QC kept of each measured target in each context';
comment on column target_contexts.target_key is 'see targets';
comment on column target_contexts.context is 'context, as factor=level[,factor=level]';
comment on column target_contexts.n_cells is 'measured cells of the target in the context';
comment on column target_contexts.status is 'kept, few_cells or inactive_target';

create table contexts (
    context_key usmallint, context varchar, levels map(varchar, varchar), is_pooled boolean,
    pooled_over varchar, n_cells bigint, n_control_cells bigint
);
comment on table contexts is 'The cellular contexts (e.g. donor x time) and the ones pooled over factors';
comment on column contexts.context_key is 'number of the context in this database';
comment on column contexts.context is 'name, factor=level[,factor=level]; all = every factor pooled';
comment on column contexts.levels is 'level of each factor that is not pooled over';
comment on column contexts.is_pooled is 'true if effects are means over the levels of a factor';
comment on column contexts.pooled_over is 'factors pooled over, comma-separated; NULL if none';
comment on column contexts.n_cells is 'measured cells in the training store, controls included; NULL if unknown';
comment on column contexts.n_control_cells is 'measured control cells in the training store; NULL if unknown';

create table programs (
    program varchar, n_genes integer, n_panel_genes integer, status varchar,
    control_status varchar, control_reason varchar, description varchar, source varchar
);
comment on table programs is 'Signed gene programs that knock-downs are ranked toward';
comment on column programs.program is 'name of the program';
comment on column programs.n_genes is 'genes in the program file';
comment on column programs.n_panel_genes is 'of those, genes on the panel';
comment on column programs.status is 'ranked, or left_out (too few genes on the panel, or not asked for)';
comment on column programs.control_status is 'passed: published regulators come out in their direction; exploratory: they do not, do not rely on it; not_tested: too few of them among the knock-downs. Of the predicted rankings, over the reported contexts';
comment on column programs.control_reason is 'in how many contexts the controls pass, and what fails; or why they were not tested';
comment on column programs.description is 'what the program stands for; NULL if the file does not say';
comment on column programs.source is 'where the gene set comes from; NULL if the file does not say';

create table program_genes (
    program varchar, gene varchar, gene_id varchar, gene_key usmallint, weight double,
    in_panel boolean, source varchar
);
comment on table program_genes is 'The genes of each program';
comment on column program_genes.program is 'name of the program';
comment on column program_genes.gene is 'gene as written in the program file';
comment on column program_genes.gene_id is 'Ensembl id of the matched gene; NULL if the input has no such gene';
comment on column program_genes.gene_key is 'see genes; NULL if the input has no such gene';
comment on column program_genes.weight is 'signed weight: positive if high in the program, negative if low';
comment on column program_genes.in_panel is 'true if the gene is on the panel and so carries the score';
comment on column program_genes.source is 'where this gene of the program comes from; NULL if the file does not say';

create table gates (
    program varchar, context varchar, evidence varchar, control_status varchar,
    control_reason varchar, n_controls integer, n_others integer, auroc double, auprc double,
    auprc_chance double, sign_share double, permutation_p double, program_p double
);
comment on table gates is 'What the positive controls say about each program, context and kind of evidence';
comment on column gates.program is 'see programs';
comment on column gates.context is 'see contexts';
comment on column gates.evidence is 'measured, predicted_seen, predicted_unseen, or predicted (both)';
comment on column gates.control_status is 'passed, exploratory (fails here, or in most of the reported contexts) or not_tested';
comment on column gates.control_reason is 'what failed, or why it was not tested; NULL if passed';
comment on column gates.n_controls is 'published regulators among the knock-downs';
comment on column gates.n_others is 'knock-downs that are none, which the controls are ranked against';
comment on column gates.auroc is 'mean share of the others that a control beats in its published direction; chance 0.5; NULL if not tested';
comment on column gates.auprc is 'average precision of the controls, per direction and weighted by controls; NULL if not tested';
comment on column gates.auprc_chance is 'what auprc is by chance: the share of controls; NULL if not tested';
comment on column gates.sign_share is 'share of controls whose score has the published sign; NULL if not tested';
comment on column gates.permutation_p is 'share of random sets of as many knock-downs that reach the auroc, (b+1)/(n+1): over knock-downs, never over cells; NULL if not tested';
comment on column gates.program_p is 'share of random programs (same weights, other genes of like expression, as co-expressed) that the controls move as far in their directions, (b+1)/(n+1); NULL if not tested, or the gate was run without effects';

create table positive_controls (
    program varchar, context varchar, evidence varchar, target_gene varchar,
    target_gene_id varchar, direction varchar, score double, percentile double,
    sign_right boolean, source varchar
);
comment on table positive_controls is 'The published regulators of each program among the knock-downs, and how they came out';
comment on column positive_controls.program is 'see programs';
comment on column positive_controls.context is 'see contexts';
comment on column positive_controls.evidence is 'measured, predicted_seen or predicted_unseen';
comment on column positive_controls.target_gene is 'symbol of the knocked-down gene';
comment on column positive_controls.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column positive_controls.direction is 'published effect of the knock-down on the program: away (it removes a driver) or toward (it removes an inhibitor)';
comment on column positive_controls.score is 'as in rankings, in log1p CP10k; positive = toward the program';
comment on column positive_controls.percentile is 'share of the knock-downs that are no controls which it beats in its direction; NULL if the program was not tested';
comment on column positive_controls.sign_right is 'true if the score has the published sign; NULL if the program was not tested';
comment on column positive_controls.source is 'where the effect is published';

create table effect_sizes (
    context_key usmallint, target_key usmallint, is_measured boolean, effect_size double,
    n_up integer, n_down integer, on_target_log2_fold_change double
);
comment on table effect_sizes is 'How much each knock-down changes in all, its own gene left out';
comment on column effect_sizes.context_key is 'see contexts';
comment on column effect_sizes.target_key is 'see targets';
comment on column effect_sizes.is_measured is 'true for the real cells, false for generated ones';
comment on column effect_sizes.effect_size is 'length of the vector of delta (log1p CP10k) over the panel; in real cells noise adds to it';
comment on column effect_sizes.n_up is 'genes up: predicted, log2 fold change at least 0.5; measured, fdr at most 0.05 and NULL without replicates';
comment on column effect_sizes.n_down is 'genes down, likewise';
comment on column effect_sizes.on_target_log2_fold_change is 'log2 fold change of the knocked-down gene itself; NULL if it is not on the panel';

create table control_expression (
    context_key usmallint, gene_key usmallint, mean_count float
);
comment on table control_expression is 'Generated control cells: what effects are compared with';
comment on column control_expression.context_key is 'see contexts';
comment on column control_expression.gene_key is 'see genes';
comment on column control_expression.mean_count is 'mean count per generated control cell';

create table effects_by_target (
    context_key usmallint, target_key usmallint, gene_key usmallint, log2_fold_change float,
    delta float, delta_se float, mean_count float
);
comment on table effects_by_target is 'Predicted effects sorted by context, target, gene: one knock-down is one contiguous read';
comment on column effects_by_target.context_key is 'see contexts';
comment on column effects_by_target.target_key is 'see targets';
comment on column effects_by_target.gene_key is 'see genes';
comment on column effects_by_target.log2_fold_change is 'log2 of mean count, perturbed over control; positive = up after the knock-down';
comment on column effects_by_target.delta is 'mean of log1p counts per 10,000 (natural log), perturbed minus control';
comment on column effects_by_target.delta_se is 'Monte-Carlo standard error of delta over generated pairs, not over donors or models; four significant digits';
comment on column effects_by_target.mean_count is 'mean count per generated perturbed cell; four significant digits';

create table effects_by_gene (
    context_key usmallint, gene_key usmallint, target_key usmallint, log2_fold_change float,
    delta float, delta_se float
);
comment on table effects_by_gene is 'The same effects sorted by context, gene, target: one gene is one contiguous read';
comment on column effects_by_gene.context_key is 'see contexts';
comment on column effects_by_gene.gene_key is 'see genes';
comment on column effects_by_gene.target_key is 'see targets';
comment on column effects_by_gene.log2_fold_change is 'log2 of mean count, perturbed over control; positive = up after the knock-down';
comment on column effects_by_gene.delta is 'mean of log1p counts per 10,000 (natural log), perturbed minus control';
comment on column effects_by_gene.delta_se is 'Monte-Carlo standard error of delta over generated pairs, not over donors or models; four significant digits';

create table measured_by_target (
    context_key usmallint, target_key usmallint, gene_key usmallint, log2_fold_change float,
    delta float, standard_error float, n_cells integer, n_control_cells integer,
    n_replicates integer, n_control_replicates integer, p_value double, fdr double
);
comment on table measured_by_target is 'Effects in the real cells, sorted by context, target, gene';
comment on column measured_by_target.context_key is 'see contexts';
comment on column measured_by_target.target_key is 'see targets';
comment on column measured_by_target.gene_key is 'see genes';
comment on column measured_by_target.log2_fold_change is 'log2 of mean expression, knocked-down over control cells; positive = up after the knock-down';
comment on column measured_by_target.delta is 'mean of log1p counts per 10,000 (natural log), knocked-down minus control cells';
comment on column measured_by_target.standard_error is 'standard error of delta over replicates where p_value is given, else over cells (a lower bound); NULL if it cannot be estimated';
comment on column measured_by_target.n_cells is 'knocked-down cells';
comment on column measured_by_target.n_control_cells is 'control cells';
comment on column measured_by_target.n_replicates is 'replicate units of the knock-down (guides, wells or batches), over the contexts pooled';
comment on column measured_by_target.n_control_replicates is 'replicate units of the control';
comment on column measured_by_target.p_value is 'two-sided p-value of delta over replicates; NULL with fewer than two on a side';
comment on column measured_by_target.fdr is 'Benjamini-Hochberg false discovery rate of p_value over the genes of the knock-down and context';

create table external_by_target (
    context_key usmallint, target_key usmallint, gene_key usmallint, source varchar,
    log2_fold_change float, log2_fold_change_se float, p_value double, fdr double
);
comment on table external_by_target is 'Effects that measured tables from elsewhere have (section external of the settings), sorted by context, target, source, gene';
comment on column external_by_target.context_key is 'see contexts; the context that the settings map the condition of the table to';
comment on column external_by_target.target_key is 'see targets';
comment on column external_by_target.gene_key is 'see genes; genes that the input has not are left out';
comment on column external_by_target.source is 'name of the table';
comment on column external_by_target.log2_fold_change is 'log2 fold change as the table has it, knocked-down over control; positive = up after the knock-down';
comment on column external_by_target.log2_fold_change_se is 'its standard error, log2 units; NULL if the table has none';
comment on column external_by_target.p_value is 'p-value as the table has it; NULL if it has none';
comment on column external_by_target.fdr is 'adjusted p-value as the table has it; NULL if it has none';

create table program_scores (
    target_key usmallint, target_gene varchar, target_gene_id varchar, context varchar,
    program varchar, evidence varchar, source varchar, score double, score_sd double,
    n_genes integer, magnitude double, rank_toward integer, rank_away integer, n_ranked integer, n_cells integer,
    n_replicates integer, score_half_a double, score_half_b double
);
comment on table program_scores is 'How far each knock-down moves cells toward each program, sorted by target; predicted and measured are separate rows';
comment on column program_scores.target_key is 'see targets';
comment on column program_scores.target_gene is 'symbol of the knocked-down gene';
comment on column program_scores.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column program_scores.context is 'see contexts';
comment on column program_scores.program is 'see programs';
comment on column program_scores.evidence is 'predicted_seen, predicted_unseen or measured';
comment on column program_scores.source is 'of measured rows: name of the table from elsewhere; NULL for the cells of this run and for predicted rows';
comment on column program_scores.score is 'weighted mean of delta (log1p CP10k; with a source, of log2 fold change) over the program genes, the target itself left out; positive = toward the program';
comment on column program_scores.score_sd is 'standard deviation of the score, as in rankings; NULL if it cannot be estimated';
comment on column program_scores.n_genes is 'program genes that carry the score';
comment on column program_scores.magnitude is 'size of the whole effect: root of the sum of squared deltas (log1p CP10k) over the panel genes but the target itself; in real cells noise adds to it; NULL for tables from elsewhere';
comment on column program_scores.rank_toward is 'rank by score from 1 = highest, among predicted or among measured rows';
comment on column program_scores.rank_away is 'rank by score from 1 = lowest, among predicted or among measured rows';
comment on column program_scores.n_ranked is 'knock-downs in that ranking';
comment on column program_scores.n_cells is 'measured knocked-down cells; NULL for predicted rows';
comment on column program_scores.n_replicates is 'replicate units of the measured knock-down (guides, wells or batches); NULL for predicted rows';
comment on column program_scores.score_half_a is 'score from one random half of the measured cells; NULL for predicted rows';
comment on column program_scores.score_half_b is 'score from the other half of the measured cells; NULL for predicted rows';

create table rankings (
    program varchar, context varchar, target_gene varchar, target_gene_id varchar,
    direction varchar, rank integer, rank_low integer, rank_high integer, score double,
    score_sd double, p_value double, fdr double, evidence varchar, control_status varchar,
    n_genes integer, n_decoys integer, program_specificity_p double, direction_p double,
    donor_concordance double, donor_sd double, source varchar, guide_concordance double,
    replicate_p_value double, replicate_fdr double, tau double
);
comment on table rankings is 'Knock-downs in order, per program, context, direction; predicted rows are ranked among themselves and measured rows among themselves';
comment on column rankings.program is 'see programs';
comment on column rankings.context is 'see contexts';
comment on column rankings.target_gene is 'symbol of the knocked-down gene';
comment on column rankings.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column rankings.direction is 'toward: highest score first; away: lowest score first';
comment on column rankings.rank is 'position from 1 = best; ties by target_gene_id';
comment on column rankings.rank_low is 'lower (better) end of the rank interval, scores resampled with their noise; for predicted rows over draws, training seeds and the error that few training cells leave (of genes never knocked down: what their prediction leaves open)';
comment on column rankings.rank_high is 'upper (worse) end of the rank interval, see rank_low';
comment on column rankings.score is 'weighted mean of delta (log1p CP10k; with a source, of log2 fold change) over the program genes, the target itself left out; positive = toward, in both directions';
comment on column rankings.score_sd is 'standard deviation of the score: over draws, over training seeds, and the error that few training cells leave as decoys show it; for measured rows the standard error; NULL if it cannot be estimated';
comment on column rankings.p_value is 'share of decoys (pseudo-targets of control cells, generated for predicted rows and measured for measured rows) with a score as extreme in this direction, (b + 1) / (n_decoys + 1), after the shift that all targets share, as far as the error of the control explains it; measured scores are counted in units of their own error; NULL with fewer than 20 decoys, and for tables from elsewhere';
comment on column rankings.fdr is 'false discovery rate: Benjamini-Hochberg of p_value over the trained (or measured) targets of one program, context and direction; NULL with fewer than 20 decoys, and for genes never knocked down, whose p_value says that features single them out and not that the prediction is right';
comment on column rankings.evidence is 'predicted_seen, predicted_unseen or measured';
comment on column rankings.control_status is 'passed: published regulators come out in their direction; exploratory: they do not, do not rely on it; not_tested: too few of them among the knock-downs. Of this program, context and evidence: see gates';
comment on column rankings.n_genes is 'program genes that carry the score';
comment on column rankings.n_decoys is 'decoys that p_value was counted against';
comment on column rankings.program_specificity_p is 'is it this program, or any genes like these? Share of decoys, of all programs, whose score stands out as far in this direction of the scores of random programs (as many genes, of like expression, as co-expressed; less their mean, over their sd), (b + 1) / (n + 1). With fewer than 20 decoys: share of random programs moved as far. NULL if not computed';
comment on column rankings.direction_p is 'share of the knock-downs of like magnitude that move the program as far in this direction, (b + 1) / (n + 1): is it this direction, or just a strong knock-down? NULL with fewer than 20 others';
comment on column rankings.donor_concordance is 'share of the contexts pooled (donors, by default) in which the score has the sign of the pooled score; NULL for separate contexts';
comment on column rankings.donor_sd is 'standard deviation of the score over the contexts pooled (donors, by default); NULL for separate contexts';
comment on column rankings.source is 'of measured rows: name of the table from elsewhere, ranked apart; NULL for the cells of this run and for predicted rows';
comment on column rankings.guide_concordance is 'of measured rows: share of the guides of the target whose own score has the sign of the score; NULL with fewer than two guides, where guides are not known, for predicted rows, and of programs added by score-programs';
comment on column rankings.replicate_p_value is 'of measured rows: two-sided t-test of the score over replicates (guides, wells or batches), the same in both directions; NULL with fewer than two on a side, for predicted rows, and of programs added by score-programs';
comment on column rankings.replicate_fdr is 'Benjamini-Hochberg of replicate_p_value over the measured targets of one program and context';
comment on column rankings.tau is 'how far the effect on the program is confined to this and few other contexts, of those with as many factors: sum of (1 - x / max x) / (n - 1) over their scores x with the sign of this one, others 0; 0 = alike in all, 1 = in one alone; of noise too, so read it where fdr is small; NULL with one context';

create table ceilings (
    program varchar, context varchar, n_targets integer, spearman_half double, ceiling double,
    splits integer
);
comment on table ceilings is 'How well measured scores agree with themselves: what a prediction can reach at most';
comment on column ceilings.program is 'see programs';
comment on column ceilings.context is 'see contexts';
comment on column ceilings.n_targets is 'measured targets compared';
comment on column ceilings.spearman_half is 'rank correlation of scores from two random halves of the cells, median over splits';
comment on column ceilings.ceiling is 'largest rank correlation to expect with the measured scores, sqrt(2r/(1+r)); NULL if r < 0';
comment on column ceilings.splits is 'random splits';

create table metrics (
    split varchar, context varchar, target_gene_id varchar, target_gene varchar, method varchar,
    metric varchar, program varchar, value double, best double, n bigint, reason varchar
);
comment on table metrics is 'How good predictions are, judged by held-out cells: model, baselines and ceiling; no rows if not evaluated';
comment on column metrics.split is 'screened: test cells of trained knock-downs; held_out_target, held_out_context: never trained';
comment on column metrics.context is 'see contexts; a pooled one is weighted by held-out cells, all = every context';
comment on column metrics.target_gene_id is 'Ensembl id of the knocked-down gene; NULL for a value over all targets';
comment on column metrics.target_gene is 'symbol of the knocked-down gene; all = over all targets';
comment on column metrics.method is 'model, a baseline, split_half (one half of the held-out cells against the other) or ceiling (the same, correlations corrected to all cells); all = target not judged';
comment on column metrics.metric is 'name of the metric, docs/evaluation.md defines each; all = target not judged';
comment on column metrics.program is 'program of a program_spearman; NULL for their mean and for other metrics';
comment on column metrics.value is 'value of the metric; NULL if undefined';
comment on column metrics.best is 'value of a perfect prediction';
comment on column metrics.n is 'held-out cells of the target; over all targets: targets with a value, or cells for a metric of cells';
comment on column metrics.reason is 'why the value is NULL; over all targets: how many have none, and why';

create table metric_differences (
    split varchar, context varchar, metric varchar, baseline varchar, model_value double,
    baseline_value double, difference double, low double, high double, best double, n bigint,
    verdict varchar
);
comment on table metric_differences is 'The model minus each baseline and the ceiling, with intervals over targets';
comment on column metric_differences.split is 'see metrics';
comment on column metric_differences.context is 'see metrics';
comment on column metric_differences.metric is 'see metrics';
comment on column metric_differences.baseline is 'what the model is compared with: a baseline or the ceiling';
comment on column metric_differences.model_value is 'mean of the model over the targets for which both have a value';
comment on column metric_differences.baseline_value is 'mean of the baseline over the same targets';
comment on column metric_differences.difference is 'model minus baseline';
comment on column metric_differences.low is 'lower end of the 95 % bootstrap interval of the difference, targets resampled; NULL below 3 targets';
comment on column metric_differences.high is 'upper end of that interval';
comment on column metric_differences.best is 'value of a perfect prediction: 1 = higher is better, 0 = lower is better';
comment on column metric_differences.n is 'targets compared, or cells for a metric of cells';
comment on column metric_differences.verdict is 'of the model: wins, ties (the interval holds 0) or loses; NULL without an interval';

create table artifacts (
    artifact varchar, stage varchar, digest varchar, seed bigint, settings varchar,
    inputs varchar, versions varchar, notes varchar
);
comment on table artifacts is 'Where each file of the run came from (the *.manifest.json files)';
comment on column artifacts.artifact is 'path inside the results folder of the run';
comment on column artifacts.stage is 'stage that wrote it';
comment on column artifacts.digest is 'SHA-256, 16 hex digits';
comment on column artifacts.seed is 'seed the stage used; NULL if none';
comment on column artifacts.settings is 'settings of the stage as JSON text';
comment on column artifacts.inputs is 'inputs and their digests as JSON text';
comment on column artifacts.versions is 'versions of Python and packages as JSON text';
comment on column artifacts.notes is 'what else the stage recorded, as JSON text';

create view effects as
select t.target_gene, t.target_gene_id, c.context, g.gene, g.gene_id, e.log2_fold_change,
    e.delta, e.delta_se, e.mean_count, b.mean_count as control_mean_count, t.evidence,
    coalesce(t.gene_key = e.gene_key, false) as is_target
from effects_by_target e
join targets t using (target_key)
join contexts c using (context_key)
join genes g on g.gene_key = e.gene_key
left join control_expression b on b.context_key = e.context_key and b.gene_key = e.gene_key;
comment on view effects is 'Predicted effect of each knock-down on each gene, with names; fast when a target is given';
comment on column effects.target_gene is 'symbol of the knocked-down gene';
comment on column effects.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column effects.context is 'see contexts';
comment on column effects.gene is 'gene symbol';
comment on column effects.gene_id is 'Ensembl id of the gene';
comment on column effects.log2_fold_change is 'log2 of mean count, perturbed over control; positive = up after the knock-down';
comment on column effects.delta is 'mean of log1p counts per 10,000 (natural log), perturbed minus control';
comment on column effects.delta_se is 'Monte-Carlo standard error of delta over generated pairs, not over donors or models; four significant digits';
comment on column effects.mean_count is 'mean count per generated perturbed cell; four significant digits';
comment on column effects.control_mean_count is 'mean count per generated control cell';
comment on column effects.evidence is 'predicted_seen or predicted_unseen';
comment on column effects.is_target is 'true for the knocked-down gene itself, which program scores leave out';

create view movers as
select g.gene, g.gene_id, c.context, t.target_gene, t.target_gene_id, e.log2_fold_change,
    e.delta, e.delta_se, t.evidence, coalesce(t.gene_key = e.gene_key, false) as is_target
from effects_by_gene e
join targets t using (target_key)
join contexts c using (context_key)
join genes g on g.gene_key = e.gene_key;
comment on view movers is 'The same effects, fast when a gene is given: which knock-downs move it';
comment on column movers.gene is 'gene symbol';
comment on column movers.gene_id is 'Ensembl id of the gene';
comment on column movers.context is 'see contexts';
comment on column movers.target_gene is 'symbol of the knocked-down gene';
comment on column movers.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column movers.log2_fold_change is 'log2 of mean count, perturbed over control; positive = up after the knock-down';
comment on column movers.delta is 'mean of log1p counts per 10,000 (natural log), perturbed minus control';
comment on column movers.delta_se is 'Monte-Carlo standard error of delta over generated pairs, not over donors or models; four significant digits';
comment on column movers.evidence is 'predicted_seen or predicted_unseen';
comment on column movers.is_target is 'true for the knocked-down gene itself, which program scores leave out';

create view measured_effects as
select t.target_gene, t.target_gene_id, c.context, g.gene, g.gene_id, e.source,
    e.log2_fold_change, e.log2_fold_change_se, e.delta, e.standard_error, e.n_cells,
    e.n_control_cells, e.n_replicates, e.n_control_replicates, e.p_value, e.fdr,
    coalesce(t.gene_key = e.gene_key, false) as is_target
from (
    select *, null::varchar as source, null::float as log2_fold_change_se from measured_by_target
    union all by name select * from external_by_target
) e
join targets t using (target_key)
join contexts c using (context_key)
join genes g on g.gene_key = e.gene_key;
comment on view measured_effects is 'Effect of each knock-down on each gene in the real cells of the run and in measured tables from elsewhere, with names';
comment on column measured_effects.target_gene is 'symbol of the knocked-down gene';
comment on column measured_effects.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column measured_effects.context is 'see contexts';
comment on column measured_effects.gene is 'gene symbol';
comment on column measured_effects.gene_id is 'Ensembl id of the gene';
comment on column measured_effects.source is 'name of the table from elsewhere; NULL for the cells of this run';
comment on column measured_effects.log2_fold_change_se is 'standard error of log2_fold_change; NULL for the cells of this run, whose test is of delta';
comment on column measured_effects.log2_fold_change is 'log2 of mean expression, knocked-down over control cells; positive = up after the knock-down';
comment on column measured_effects.delta is 'mean of log1p counts per 10,000 (natural log), knocked-down minus control cells';
comment on column measured_effects.standard_error is 'standard error of delta over replicates where p_value is given, else over cells (a lower bound); NULL if it cannot be estimated';
comment on column measured_effects.n_cells is 'knocked-down cells';
comment on column measured_effects.n_control_cells is 'control cells';
comment on column measured_effects.n_replicates is 'replicate units of the knock-down (guides, wells or batches), over the contexts pooled';
comment on column measured_effects.n_control_replicates is 'replicate units of the control';
comment on column measured_effects.p_value is 'two-sided p-value of delta over replicates; NULL with fewer than two on a side';
comment on column measured_effects.fdr is 'Benjamini-Hochberg false discovery rate of p_value over the genes of the knock-down and context';
comment on column measured_effects.is_target is 'true for the knocked-down gene itself, which program scores leave out';

create macro caveats(direction, fdr, first_by_decoys, evidence, control_status, knockdown_status, objection, n_cells, score, activation, proliferation) as
    nullif(concat_ws('; ',
        case when evidence = 'predicted_unseen' then 'never knocked down in training' end,
        case when control_status = 'exploratory' then 'the positive controls of the program fail'
            when control_status = 'not_tested' then 'no positive controls tested' end,
        case when fdr > 0.1 and first_by_decoys then 'fdr above 0.1, though beyond every decoy: more decoys would tell'
            when fdr > 0.1 then 'fdr above 0.1' end,
        case when fdr <= 0.1 and score * (case when direction = 'toward' then 1 else -1 end) < 0
            then 'unlike the usual knock-down, yet not ' || direction || ' by itself' end,
        case when evidence <> 'predicted_unseen' and knockdown_status = 'not_measurable'
            then 'the knock-down itself could not be measured' end,
        objection,
        case when evidence <> 'predicted_unseen' and n_cells < 30 then 'few cells (' || n_cells || ')' end,
        case when abs(activation) > abs(score) then 'moves activation more than the program' end,
        case when abs(proliferation) > abs(score) then 'moves proliferation more than the program' end
    ), '');

create view ranking_cards as
select r.*, g.control_reason, coalesce(k.n_cells, s.n_cells) as n_cells, t.n_guides,
    t.knockdown_status, t.on_target_log2_fold_change, t.baseline_expression, t.known_regulator,
    t.annotations, t.neighbours, e.effect_size, e.n_up, e.n_down, a.score as activation_score, p.score as proliferation_score,
    caveats(r.direction, r.fdr, r.p_value * (r.n_decoys + 1) < 1.5, r.evidence, r.control_status, t.knockdown_status, t.objection,
        coalesce(k.n_cells, s.n_cells), r.score, case when r.program <> 'activation' then a.score end,
        case when r.program <> 'proliferation' then p.score end) as caveat
from rankings r
join targets t on t.target_gene_id = r.target_gene_id
join contexts c on c.context = r.context
left join gates g on g.program = r.program and g.context = r.context and g.evidence = r.evidence
    and r.source is null
left join effect_sizes e on e.context_key = c.context_key and e.target_key = t.target_key
    and e.is_measured = (r.evidence = 'measured') and r.source is null
left join target_contexts k on k.target_key = t.target_key and k.context = r.context
    and r.source is null
left join program_scores s on s.target_key = t.target_key and s.context = r.context
    and s.program = r.program and s.evidence = 'measured' and s.source is null
    and r.source is null
left join program_scores a on a.target_key = t.target_key and a.context = r.context
    and a.evidence = r.evidence and a.program = 'activation'
    and a.source is not distinct from r.source
left join program_scores p on p.target_key = t.target_key and p.context = r.context
    and p.evidence = r.evidence and p.program = 'proliferation'
    and p.source is not distinct from r.source;
comment on view ranking_cards is 'Rankings with all that is known of each knock-down and what speaks against it';
comment on column ranking_cards.program is 'see rankings';
comment on column ranking_cards.context is 'see rankings';
comment on column ranking_cards.target_gene is 'see rankings';
comment on column ranking_cards.target_gene_id is 'see rankings';
comment on column ranking_cards.direction is 'see rankings';
comment on column ranking_cards.rank is 'see rankings';
comment on column ranking_cards.rank_low is 'see rankings';
comment on column ranking_cards.rank_high is 'see rankings';
comment on column ranking_cards.score is 'weighted mean of delta (log1p CP10k) over the program genes, the target itself left out; positive = toward, in both directions';
comment on column ranking_cards.score_sd is 'see rankings';
comment on column ranking_cards.p_value is 'see rankings';
comment on column ranking_cards.fdr is 'see rankings';
comment on column ranking_cards.evidence is 'see rankings';
comment on column ranking_cards.control_status is 'see rankings';
comment on column ranking_cards.n_genes is 'see rankings';
comment on column ranking_cards.n_decoys is 'see rankings';
comment on column ranking_cards.program_specificity_p is 'see rankings';
comment on column ranking_cards.direction_p is 'see rankings';
comment on column ranking_cards.donor_concordance is 'see rankings';
comment on column ranking_cards.donor_sd is 'see rankings';
comment on column ranking_cards.source is 'see rankings; cells, guides and effect sizes are those of the run, so NULL for a table from elsewhere';
comment on column ranking_cards.guide_concordance is 'see rankings';
comment on column ranking_cards.replicate_p_value is 'see rankings';
comment on column ranking_cards.replicate_fdr is 'see rankings';
comment on column ranking_cards.tau is 'see rankings';
comment on column ranking_cards.control_reason is 'see gates';
comment on column ranking_cards.n_cells is 'measured cells of the knock-down in the context; NULL if none';
comment on column ranking_cards.n_guides is 'see targets';
comment on column ranking_cards.knockdown_status is 'see targets';
comment on column ranking_cards.on_target_log2_fold_change is 'see targets; from QC, all contexts';
comment on column ranking_cards.baseline_expression is 'see targets';
comment on column ranking_cards.known_regulator is 'see targets';
comment on column ranking_cards.annotations is 'see targets';
comment on column ranking_cards.neighbours is 'see targets';
comment on column ranking_cards.effect_size is 'see effect_sizes; of the row''s own evidence';
comment on column ranking_cards.n_up is 'see effect_sizes';
comment on column ranking_cards.n_down is 'see effect_sizes';
comment on column ranking_cards.activation_score is 'score of the same knock-down on the program activation (log1p CP10k, positive = toward): is it activation rather than this program? NULL if not ranked';
comment on column ranking_cards.proliferation_score is 'score of the same knock-down on the program proliferation, likewise: is it growth or death rather than this program?';
comment on column ranking_cards.caveat is 'what speaks against the row, in words; NULL if nothing known does';

create view predicted_and_measured as
select p.program, p.context, p.target_gene, p.target_gene_id, p.evidence, p.score, p.rank_toward,
    p.n_ranked, m.score as measured_score, m.score_sd as measured_score_sd,
    m.rank_toward as measured_rank_toward, m.n_ranked as measured_n_ranked,
    sign(p.score) = sign(m.score) as same_sign
from program_scores p
join program_scores m on m.target_key = p.target_key and m.context = p.context
    and m.program = p.program and m.evidence = 'measured' and m.source is null
where p.evidence <> 'measured';
comment on view predicted_and_measured is 'Scores of knock-downs that are both predicted and measured, side by side';
comment on column predicted_and_measured.program is 'see programs';
comment on column predicted_and_measured.context is 'see contexts';
comment on column predicted_and_measured.target_gene is 'symbol of the knocked-down gene';
comment on column predicted_and_measured.target_gene_id is 'Ensembl id of the knocked-down gene';
comment on column predicted_and_measured.evidence is 'predicted_seen or predicted_unseen: of the predicted score';
comment on column predicted_and_measured.score is 'predicted: weighted mean of delta (log1p CP10k) over the program genes, the target itself left out; positive = toward';
comment on column predicted_and_measured.rank_toward is 'rank of the predicted score from 1 = highest, among predicted';
comment on column predicted_and_measured.n_ranked is 'predicted knock-downs in that ranking';
comment on column predicted_and_measured.measured_score is 'the same in the real cells';
comment on column predicted_and_measured.measured_score_sd is 'standard error of the measured score; NULL if it cannot be estimated';
comment on column predicted_and_measured.measured_rank_toward is 'rank of the measured score, among measured';
comment on column predicted_and_measured.measured_n_ranked is 'measured knock-downs in that ranking';
comment on column predicted_and_measured.same_sign is 'true if both point the same way';

create view gene_status as
select g.gene, g.gene_id, g.in_panel, coalesce(t.status, 'not_in_library') as status,
    t.status_reason, t.evidence,
    t.n_cells, t.knockdown_status
from genes g
left join targets t on t.target_gene_id = g.gene_id;
comment on view gene_status is 'Every gene of the input as a knock-down: screened, or why not';
comment on column gene_status.gene is 'gene symbol';
comment on column gene_status.gene_id is 'Ensembl id, or what the input has in its place';
comment on column gene_status.in_panel is 'true if the model sees the gene, and effects on it exist';
comment on column gene_status.status is 'screened, or why its knock-down was not: not_expressed, no_features, filtered, not_in_library, not_a_candidate';
comment on column gene_status.status_reason is 'see targets; NULL if screened, or not in the library';
comment on column gene_status.evidence is 'predicted_seen or predicted_unseen; NULL if not screened';
comment on column gene_status.n_cells is 'measured cells with this knock-down after QC; NULL if none';
comment on column gene_status.knockdown_status is 'see targets';
