{{- define "ipamd.labels" -}}
app.kubernetes.io/name: ipamd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ipamd.selector" -}}
app.kubernetes.io/name: ipamd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ipamd.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The configuration as a map: what the chart's own values say, and what `config` says, which wins. */ -}}
{{- define "ipamd.config" -}}
{{- $v := .Values -}}
{{- $socket := printf "%s/ipamd.sock" $v.paths.socketDirectory -}}
{{- $config := dict "store" $v.store "socket" $socket "state_dir" $v.paths.stateDirectory -}}
{{- $_ := set $config "runtime" (dict "results_dir" $v.paths.results) -}}
{{- if eq $v.store "etcd" -}}
{{- if not $v.etcd.endpoints }}{{ fail "etcd.endpoints is empty: name etcd's members, or set store to embedded" }}{{ end -}}
{{- $etcd := dict "endpoints" $v.etcd.endpoints -}}
{{- if $v.etcd.secret.name -}}
{{- range $name, $file := dict "ca" "ca_file" "cert" "cert_file" "key" "key_file" "password" "password_file" -}}
{{- with get $v.etcd.secret $name -}}{{- $_ := set $etcd $file (printf "/etc/ipamd/etcd/%s" .) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- with $v.etcd.username -}}{{- $_ := set $etcd "username" . -}}{{- end -}}
{{- $_ := set $config "etcd" $etcd -}}
{{- end -}}
{{- if $v.kubernetes -}}{{- $_ := set $config "kubernetes" (dict "config" "in-cluster") -}}{{- end -}}
{{- if $v.metrics.enabled -}}{{- $_ := set $config "metrics_address" (printf "%s:%v" $v.metrics.host $v.metrics.port) -}}{{- end -}}
{{- mergeOverwrite $config (deepCopy $v.config) | toJson -}}
{{- end }}

{{- /* A container that can do what its user owns, and nothing else. */ -}}
{{- define "ipamd.confined" -}}
runAsUser: {{ .user }}
runAsGroup: {{ .user }}
{{- if .user }}
runAsNonRoot: true
{{- end }}
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
privileged: false
capabilities:
  drop: [ALL]
  {{- with .add }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}
