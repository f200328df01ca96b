{{/* Not empty where a Triton server runs in the expert pods of a pool (merged). */}}
{{- define "understudy.hasTriton" -}}
{{- if and (eq .ffn "remote") (eq .experts.settings.executor "triton") (not .experts.settings.triton) }}true{{ end -}}
{{- end -}}

{{- define "understudy.tritonAddress" -}}127.0.0.1:8001{{- end -}}

{{/* Folder of a pool's packages: decided by all that decides what is packaged. Takes root and pool. */}}
{{- define "understudy.packages" -}}
{{- $settings := .pool.experts.settings -}}
{{- $made := list (include "understudy.path" (dict "root" .root "path" .pool.model)) $settings.weightsDtype $settings.compute $settings.layers $settings.expertIds .pool.experts.triton.threads (include "understudy.serviceImage" (dict "root" .root "service" "experts")) -}}
{{- printf "%s-%s" .pool.name (toJson $made | sha256sum | trunc 16) -}}
{{- end -}}

{{- define "understudy.packagesClaim" -}}
{{- printf "%s-%s-packages" (include "understudy.fullname" .root) .pool.name -}}
{{- end -}}

{{/* Holds a pod back until its packages are published. Takes root and pool. */}}
{{- define "understudy.awaitPackages" -}}
- name: packages
  image: {{ include "understudy.serviceImage" (dict "root" .root "service" "experts") }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command:
    - python
    - -m
    - understudy.weights
    - wait
    - /packages
    - {{ include "understudy.packages" . }}
    - --limit-s={{ .pool.experts.triton.job.deadlineS }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    requests: {cpu: 10m, memory: 128Mi}
    limits: {memory: 256Mi}
  securityContext:
    {{- include "understudy.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: packages, mountPath: /packages, readOnly: true}
{{- end -}}

{{/* The server, a native sidecar that starts before its worker and ends after it, and which alone gets
the GPUs. It listens on loopback only, so that nobody but the worker can tell it to load models. It has
no readiness probe: the worker's canary judges it. Takes root and pool. */}}
{{- define "understudy.tritonContainer" -}}
{{- $triton := .pool.experts.triton -}}
{{- $probe := "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/live', timeout=4)" -}}
- name: triton
  image: {{ include "understudy.serviceImage" (dict "root" .root "service" "triton") }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  restartPolicy: Always
  command:
    - tritonserver
    - --model-repository=/packages/{{ include "understudy.packages" . }}
    - --model-control-mode=explicit
    - --disable-auto-complete-config
    - --http-address=127.0.0.1
    - --http-port=8000
    - --grpc-address=127.0.0.1
    - --grpc-port=8001
    - --metrics-address=127.0.0.1
    - --metrics-port=8002
    - --exit-timeout-secs=5
    {{- if not (or .pool.experts.gpus .pool.experts.resourceClaims) }}
    - --allow-gpu-metrics=false
    {{- end }}
  env:
    - {name: OMP_NUM_THREADS, value: {{ $triton.threads | quote }}}
  startupProbe:
    exec: {command: [python3, -c, {{ $probe | quote }}]}
    periodSeconds: 5
    timeoutSeconds: 10
    failureThreshold: 60
  livenessProbe:
    exec: {command: [python3, -c, {{ $probe | quote }}]}
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 3
  resources:
    {{- include "understudy.workerResources" (dict "root" .root "part" (merge (dict "resources" $triton.resources) (pick .pool.experts "gpus" "resourceClaims"))) | nindent 4 }}
  securityContext:
    {{- include "understudy.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: packages, mountPath: /packages, readOnly: true}
    - {name: shared-memory, mountPath: /dev/shm}
{{- end -}}

{{/* Volumes behind the mounts of the two. Takes root and pool. */}}
{{- define "understudy.tritonVolumes" -}}
- name: packages
  persistentVolumeClaim: {claimName: {{ include "understudy.packagesClaim" . }}, readOnly: true}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .pool.experts.triton.sharedMemoryMib }}Mi}
{{- end -}}
