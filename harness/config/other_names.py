"""What other trainers call a setting: timm's `train.py`, Lightning, the Hugging Face Trainer, fastai and Ultralytics.

Only for messages: none of these names sets anything, since its values may mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# Setting -> its names elsewhere, in lower case and without dashes and underscores.
_NAMES = {
    "recipe": "cfg configfile hparams hyp",
    "model": "arch architecture backbone modelname modelnameorpath modeltype net network networkname timmmodel",
    "model_args": "archargs archkwargs modelconfig modelkwargs modelparams",
    "pretrained": "pretrain usepretrained",
    "plugin": "importmodule plugins usermodules",
    "data": "classificationdataset datamodule dataset datasetname",
    "data_dir": "datafolder datapath dataroot datasetdir datasetpath imagedir imagefolder imagesdir imgdir root rootdir traindata",
    "init": "finetunefrom initcheckpoint initfrom initialcheckpoint initweights loadfrom loadweights pretrainedpath pretrainedweights startfrom weights",
    "download": "datasetdownload",
    "in_chans": "channels inchannels inputchannels numchannels",
    "image_size": "cropsize imagesz imgsize imgsz inputsize resolution traincropsize",
    "val_fraction": "devsplit holdout val validation validationfraction validationratio validationsize validationsplit validpct valpct valratio valsize valsplit",
    "test_fraction": "testpct testratio testsize testsplit",
    "resize": "resizemode",
    "bad_images": "skipbadimages skipbroken",
    "workers": "dataloadernumworkers dataloaderworkers dataworkers loaderworkers numworkers nw nworkers",
    "augment": "augmentation augmentations augs dataaugmentation",
    "flip": "fliplr hflip horizontalflip randomflip",
    "crop": "randomcrop traincropmode",
    "cutout": "cutoutlength cutoutsize",
    "crop_scale": "randomresizedcropscale rrcscale scale",
    "crop_ratio": "aspectratio randomresizedcropratio ratio rrcratio",
    "vflip": "flipud randomverticalflip verticalflip vflipprob",
    "auto_augment": "aa aapolicy augmentpolicy augmix augpolicy autoaug autoaugmentpolicy randaug randaugment",
    "color_jitter": "colorjitterstrength colourjitter jitter",
    "color_jitter_prob": "colourjitterprob",
    "grayscale": "grayscaleprob greyscale randomgrayscale",
    "blur": "blurprob gaussianblur gaussianblurprob",
    "erasing": "erasingprob randomerase randomerasing randomerasingprob reprob",
    "erasing_mode": "remode",
    "erasing_count": "recount",
    "erasing_area": "erasingscale",
    "aug_repeats": "rareps rasampler repeatedaug repeatedaugmentation",
    "augment_pipeline": "albumentations albumentationsfile albumentationspipeline pipeline",
    "epochs": "epoch maxepochs nbepochs nepoch nepochs numepochs numtrainepochs totalepochs trainepochs",
    "batch_size": "batch bs globalbatchsize minibatchsize totalbatchsize trainbatch trainbatchsize",
    "eval_batch_size": "evalbatch perdeviceevalbatchsize testbatchsize valbatchsize validationbatchsize",
    "drop_last": "dataloaderdroplast",
    "optimizer": "optim optimizername optimizertype optimname optname solver",
    "momentum": "adambeta1 beta1 mom sgdmomentum",
    "optimizer_args": "optargs optimargs optimizerkwargs optimizerparams optimkwargs optkwargs",
    "nesterov": "usenesterov",
    "weight_decay": "decay l2 l2reg wdecay weightdecayrate",
    "layer_decay": "layerdecayrate layerlrdecay layerwiselrdecay llrd lrlayerdecay",
    "freeze": "freezebackbone freezelayers freezeparams frozen frozenlayers",
    "freeze_epochs": "freezebackboneepochs headepochs unfreezeepoch",
    "drop": "dropout dropoutrate droprate",
    "drop_path": "dropconnect dropconnectrate droppathrate stochasticdepth stochasticdepthprob",
    "gradient_checkpointing": "activationcheckpointing checkpointactivations gradcheckpointing gradcheckpoint usegradientcheckpointing",
    "loss": "criterion lossfn lossfunction lossname losstype",
    "loss_args": "losskwargs lossparams",
    "class_weights": "classweight clsweight clsweights weightclasses",
    "sampling": "balancedsampler balancedsampling sampler samplertype weightedsampler weightedsampling",
    "select_by": "evalmetric metricforbestmodel monitor",
    "label_smoothing": "labelsmooth labelsmoothingfactor ls smoothing",
    "mixup": "mixupalpha",
    "cutmix": "cutmixalpha",
    "clip_grad": "clip clipgradnorm clipnorm gradclip gradclipnorm gradclipval gradientclip gradientclipval maxgradnorm",
    "ema": "emadecay modelemadecay",
    "ema_warmup": "modelemawarmup",
    "select": "loadbestmodelatend savebest savebestonly selectbest",
    "early_stop": "earlystopping earlystoppingpatience patience",
    "schedule": "lrpolicy lrsched lrscheduler lrschedulertype lrschedule sched scheduler schedulertype",
    "lr_min": "endlr etamin finallr lrend minlr minimumlr",
    "lr_min_ratio": "lrf",
    "lr_max": "baselr blr initiallr initlr learningrate lr0 lrbase maxlr peaklr",
    "warmup_epochs": "lrwarmupepochs warmup warmupepoch",
    "warmup_steps": "nwarmup numwarmupsteps warmupiter warmupiterations warmupiters warmupupdates",
    "warmup_factor": "lrwarmupdecay startfactor warmuplrfactor warmupstartfactor",
    "step_epochs": "decayepochs lrstepsize stepsize",
    "milestones": "decaymilestones lrmilestones lrsteps stepmilestones",
    "step_factor": "decayfactor decayrate dr gamma lrdecay lrdecayrate lrgamma stepgamma",
    "poly_power": "lrpower polynomialpower power",
    "schedule_args": "lrschedulerargs lrschedulerkwargs schedulerargs schedulerkwargs schedulerparams",
    "cycles": "ncycles numcycles",
    "plateau_patience": "patienceepochs schedulerpatience",
    "plateau_factor": "lrfactor lrreducefactor",
    "tta": "testtimeaugmentation",
    "seed": "globalseed manualseed randomseed randomstate",
    "deterministic": "cudnndeterministic deterministicmode fulldeterminism",
    "device": "accelerator cudadevice deviceid gpu gpuid",
    "precision": "ampdtype autocast dtype mixedprecision modeldtype torchdtype",
    "channels_last": "channellast memoryformat",
    "compile": "jitcompile torchcompile usecompile",
    "sync_bn": "convertsyncbn syncbatchnorm",
    "process_timeout": "ddptimeout",
    "threads": "numthreads torchthreads",
    "tracker": "logger loggers reportto trackers trackwith",
    "wandb": "logwandb usewandb wandbmode",
    "project": "projectname wandbproject wandbprojectname",
    "entity": "team wandbentity",
    "name": "exp experiment experimentname expname runname wandbname",
    "group": "wandbgroup",
    "tags": "tag wandbtags",
    "notes": "comment description wandbnotes",
    "log_every": "logeverynsteps loggingsteps loginterval logsteps printfreq",
    "watch": "wandbwatch watchmodel",
    "log_model": "logartifact savemodelartifact wandblogmodel",
    "output": "checkpointdir ckptdir defaultrootdir logdir modeldir outdir outputdir runsdir savedir savepath workdir",
    "resume": "autoresume checkpoint ckpt ckptpath lastcheckpoint resumefrom resumefromcheckpoint",
    "checkpoint_every": "checkpointinterval everyntrainsteps recoveryinterval saveevery savefreq saveinterval savesteps",
}  # fmt: skip
NAMES_ELSEWHERE = {other: name for name, others in _NAMES.items() for other in others.split()}

# Options of timm's `train.py` that have no equal here.
_TIMM_ALONE = """
    clipmode cooldownepochs cutmixminmax datasettrustremotecode devicemodules distilllossweight fastnorm headinitbias
    headinitscale kddistilltype kdlosstype kdmodelname kdstudentfeaturedim kdteacherfeaturedim kdtemperature
    kdtokendistilltype layerdecayminscale layerdecaynooptscale lrcycledecay lrcyclelimit lrcyclemul lrkdecay lrnoise lrnoisepct
    lrnoisestd mixupmode mixupoffepoch mixupprob mixupswitchprob modelemaforcecpu naflexloader naflexlossscale naflexmaxseqlen
    naflexpatchifychannelsfirst naflexpatchsizeprobs naflexpatchsizes naflextrainseqlens noprefetcher splitbn synchronizestep
    tasklossweight trainbatchesperepoch trainbatchsizes trainimgsizes trainsizeprobs trainsizerandommix trainsizeschedule
    trainsizeschedulespread trainstepsperepoch valinterval variablebatchlossscale
"""

# Where the value means something else here: what to write instead -> the names elsewhere.
_REMEDIES = {
    "use --class-weights balanced, or --sampling balanced": "balanced classbalance classbalanced",
    "use --in-chans: 1 is mode L, and 3 is RGB": "inputimgmode",
    "use --loss bce": "bce bceloss binarycrossentropy",
    "use --loss focal": "focal focalloss",
    "use --loss focal with --loss-args gamma=2": "focalgamma gammafocal flgamma",
    "use --loss bce with --loss-args target_threshold=0.2": "bcetargetthresh bcetargetthreshold",
    "use --loss bce with --loss-args sum_classes=true": "bcesum",
    "use --loss bce with --loss-args pos_weight=2": "bceposweight posweight",
    "leave it out: the first view of --aug-splits is never erased": "resplit",
    "use --loss jsd with --aug-splits 3": "augmixloss jensenshannon jsd jsdloss",
    "normalisation is that of the model's timm configuration, which --model-args pretrained_cfg_overlay={...} changes, or computed from the training images": "imagenetdefaultmeanandstd imgmean imgstd mean normalize normalization std",
    "use --data-dir with the folders train, val and test, or a table with a column of splits": "folder testdir testfolder testpath traindir valdir valfolder valpath",
    "it is that of the model's timm configuration, which --model-args pretrained_cfg_overlay={...} changes; --resize decides what is cut": "croppct interpolation traininterpolation",
    "use --precision bf16, fp16, fp32 or auto": "amp apexamp bf16 float16 fp16 fp32 half halfprecision nativeamp tf32 useamp usefp16",
    "use --ema with the decay, such as --ema 0.999": "modelema useema",
    "use --device cpu": "cpu nocuda nogpu usecpu",
    "use --device cuda": "cuda usecuda usegpu",
    "several GPUs: torchrun --standalone --nproc-per-node N -m harness run, see docs/distributed.md": "dataparallel ddp devices distributed gpus localrank multigpu ngpu ngpus nnodes nprocpernode numgpus numnodes strategy worldsize",
    "use --batch-size, the number of images of an update over all devices": "perdevicetrainbatchsize",
    "use --grad-accumulation, the number of parts of each batch of --batch-size; for larger updates raise --batch-size": "accumiter accumsteps accumulate accumulategradbatches gradaccum gradaccumsteps gradientaccumulation gradientaccumulationsteps",
    "use --epochs; an epoch has as many updates as the training images have batches of --batch-size": "iterations maxiter maxiters maxsteps niter niters numiterations numsteps totalsteps trainsteps",
    "use --peak-epoch, the epoch at whose end one_cycle reaches --lr-max (a fraction is allowed)": "pctstart",
    "use --warmup-epochs, a number of epochs (a fraction is allowed)": "warmupratio",
    "use --warmup-factor, the LR of the first update of the warm-up as a fraction of that at its end": "warmuplr warmuplrinit",
    "the warm-up comes before the schedule, which takes the rest of the run": "warmupprefix",
    "use --schedule polynomial, with --poly-power": "polylr linearlr",
    "use --schedule step, with --step-epochs and --step-factor": "steplr",
    "use --schedule multi_step, with --milestones and --step-factor": "multisteplr",
    "use --lr-min-ratio, the LR at both ends as a fraction of --lr-max": "divfactor finaldivfactor finaldiv",
    "use --schedule cosine": "coslr cosinelr",
    "use --schedule one_cycle": "onecycle onecyclelr",
    "use --schedule plateau": "reducelronplateau",
    "use --lr-max find, or the command harness lr-find": "autolrfind findlr lrfind lrfinder",
    "use --augment none": "noaug noaugment noaugmentation",
    "use --color-jitter with four numbers: brightness, contrast, saturation and hue": "brightness contrast hsvh hsvs hsvv hue saturation",
    "use --auto-augment, such as --auto-augment rand-m9-mstd0.5-inc1, which also rotates, shears and moves images": "degrees rotate rotation shear translate",
    "use --select best, which keeps the weights of the best epoch": "keepbest savetopk",
    "the latest two checkpoints and the weights of the result are kept": "checkpointhist maxcheckpoints savetotallimit",
    "use --dry-run, which chooses and checks everything and trains nothing": "checkonly fastdevrun sanitycheck",
    "use --count, the number of trials": "maxtrials ntrials numsamples numtrials runcap trials",
    "use the command harness evaluate RUN": "evalonly evaluate evaluateonly testonly validate validateonly",
    "use the command harness predict RUN IMAGE...": "infer inference predict predictonly source",
    "use --tta, the mean of each image and its mirror image": "ttaug",
    "use --wandb disabled": "disablewandb nowandb",
    "use --wandb offline": "offline wandboffline",
    "use --workers 0 with --loader timm": "noworkers",
    "use --resume with the run directory; W&B continues the same run": "resumeid runid wandbid wandbresumeid",
    "use --resume never with a new --name": "existok overwrite overwriteoutputdir",
    "use the folders train, val and test, or --split-column of a table": "trainsplit",
    "all images of a data set are used, and counted": "trainnumsamples valnumsamples",
    "use --image-column, of a table or of a data set that is saved to disk": "inputkey",
    "use --label-separator or --label-columns, of a table": "multilabel multilabels multihot problemtype",
    "use --label-column, of a table or of a data set that is saved to disk": "targetkey",
    "use --init RUN, which takes the weights alone": "noresumeopt",
    "use --model-args, such as --model-args global_pool=avg": "globalpool gp",
    "use --model-args, such as --model-args drop_block_rate=0.1": "dropblock dropblockrate",
    "use --model-args, such as --model-args bn_momentum=0.05,bn_eps=0.001, where the model takes them": "bneps bnmomentum",
    "use --lr-max with the product: the base rate times batch size / base size": "lrbasescale lrbasesize",
    "the LR is set for every update": "schedonupdates",
    "use --epochs, that many times as many": "epochrepeats",
    "running statistics are averaged over the processes before each evaluation": "distbn noddpbb",
    "each image has a seed of its own, whatever the number of workers": "workerseeding",
    "memory is pinned where there is a CUDA GPU": "dataloaderpinmemory pinmem pinmemory",
    "worker processes live as long as the run": "persistentworkers usemultiepochsloader",
    "use --gallery, the number of images in figures/augmented.png": "saveimages",
    "use --resume RUN, whose checkpoint knows its epoch": "startepoch",
    "use --compile": "fuser torchscript",
    "use --compile, which has one mode": "torchcompilemode",
    "classes are numbered in the order of their names": "classmap",
    "the data say how many classes there are; --classes gives the model more outputs than that": "nbclasses nc nclasses numclass numclasses numlabels",
    "docs/howto/from-timm.md says why, and what to do": _TIMM_ALONE,
    "use --optimizer-args, such as --optimizer-args eps=1e-6,betas=[0.9,0.98]": "adambeta2 adamepsilon beta2 betas epsilon eps optbetas opteps",
}  # fmt: skip
REMEDIES_ELSEWHERE = {other: remedy for remedy, others in _REMEDIES.items() for other in others.split()}


def settings_in(remedy: str) -> set[str]:
    """Return the settings whose options a remedy names."""
    return {option.replace("-", "_") for option in re.findall(r"--([a-z][a-z-]*)", remedy.partition("torchrun")[0])}


def meaning_of(name: str, known: Collection[str]) -> tuple[str, str]:
    """Return the setting that a name of another trainer means, and what to write instead; each is empty where there is none.

    Args:
        name: in lower case, without dashes and underscores.
        known: the settings that can be given here; what needs another one is not returned.
    """
    setting, remedy = NAMES_ELSEWHERE.get(name, ""), REMEDIES_ELSEWHERE.get(name, "")
    is_possible = (settings_in(remedy) or {"epochs"}) <= set(known)  # the other remedies are about training
    return setting if setting in known else "", remedy if is_possible else ""
