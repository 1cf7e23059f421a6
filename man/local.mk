# What is built in man/.
dist_man_MANS += man/h5-to-hf.1 man/hf-to-h5.1
dist_man_MANS += man/mtllm-data.1
dist_man_MANS += man/mtllm-plan.1
dist_man_MANS += man/mtllm-report.1
dist_man_MANS += man/mtllm.8
dist_man_MANS += man/mtllm-ckpt.1 man/mtllm-checkpoint.5
dist_man_MANS += man/mtllm-template.5
dist_man_MANS += man/mtllm-metric.3

# The picture of README.md.
EXTRA_DIST += man/loss.svg

# Pages that hold the settings table are made from it.
noinst_PROGRAMS = man/fill_settings
man_fill_settings_SOURCES = man/fill_settings.c
man_fill_settings_LDADD = core/libcore.la
filled_pages = man/mtllm-train.1 man/mtllm.conf.5
nodist_man_MANS += $(filled_pages)
EXTRA_DIST += $(filled_pages:%=%.in)
CLEANFILES += $(filled_pages)
man/mtllm-train.1: $(srcdir)/man/mtllm-train.1.in man/fill_settings$(EXEEXT)
	$(AM_V_GEN)man/fill_settings$(EXEEXT) < $(srcdir)/man/mtllm-train.1.in > $@.tmp && mv $@.tmp $@
man/mtllm.conf.5: $(srcdir)/man/mtllm.conf.5.in man/fill_settings$(EXEEXT)
	$(AM_V_GEN)man/fill_settings$(EXEEXT) < $(srcdir)/man/mtllm.conf.5.in > $@.tmp && mv $@.tmp $@
