// A curved sheet that fills space, cut open.
void mainImage(out vec4 colour, in vec2 at) {
    vec3 ray = normalize(vec3(centred(at), 0.9));
    ray.xz = turn(TAU * random(0) + 0.2 * iTime) * ray.xz;
    ray.yz = turn(TAU * random(1)) * ray.yz;
    vec3 eye = vec3(random(2), random(3), random(4)) * TAU + vec3(0, 0, iTime);
    float far = 0.6, scale = between(5, 2.0, 4.0), thick = between(6, 0.1, 0.5), field = 1.0;
    for (int k = 0; k < 30 && abs(field) > 0.01; k++) {
        vec3 q = scale * (eye + ray * far);
        field = (abs(dot(sin(q), cos(q.yzx))) - thick) / (scale * 1.8);
        far += field;
    }
    vec3 q = scale * (eye + ray * far);
    vec3 normal = normalize(cos(q) * cos(q.yzx) - sin(q.zxy) * sin(q));
    float bright = 0.25 + 0.8 * abs(dot(normal, normalize(ray + vec3(0.5, 0.5, 0))));
    colour = vec4(mix(palette(far * 0.5 + 0.2 * normal.x) * bright, ink(7), clamp(far / 5.0, 0.0, 1.0)), 1);
}
